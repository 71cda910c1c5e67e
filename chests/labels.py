r"""Report text -> CheXpert labels, by rules.

The labels are those of the CheXpert labeler (Irvin et al., AAAI 2019, arXiv 1901.07031): find every *mention*
of a finding, decide for each whether the report affirms, denies or doubts it, then merge those of a label.

    1.0 present      0.0 absent      -1.0 uncertain      nan not mentioned

    "Small left effusion, no pneumothorax. The heart may be enlarged."
     -> Pleural Effusion 1, Pneumothorax 0, Cardiomegaly -1

The original matches dependency parses. This file reads each clause from left to right instead, which needs no
parser and labels thousands of reports a second. Words that deny or doubt ("cues") reach a mention through
lists ("no A, B or C") and stop where the clause turns to something else.
"""

import re
from functools import lru_cache
from math import isnan, nan

import torch
from torch import Tensor

from chests.findings import FINDINGS, LABELS, ORGANS
from chests.plainer import NAMED, plainer
from chests.reports import NO_CHANGE, NONE_HEAD, WORDED, cues, one_line

PRESENT, ABSENT, UNCERTAIN = 1.0, 0.0, -1.0
WINDOW = 300  # characters of context either side of a mention; bounds the time a hostile text can take

# Mentions; not an organ's: "the line ends over the mediastinum", "opacity behind the heart"
POSITION = r"(?<!over the )(?<!overlying the )(?<!in the )(?<!behind the )(?<!to the )(?<!shifts the )"
FINDING = {name: re.compile(cues(stems)) for name, stems in FINDINGS.items()}
DEVICE = FINDING["Support Devices"]
ORGAN = {name: re.compile(r"\b" + POSITION + cues(stems)) for name, stems in ORGANS.items()}

# ------------------------------------------------------------------------------------------------------------
# What a clause says about a finding

CLAUSE = re.compile(r";|,? (?:but|however|although|though|except|while|whereas|despite)\b")
STOP = re.compile(cues(r"""
    is\b|are\b|was\b|were\b|has\b|have\b|there\b|which\b|because\b
    (?<!consistent )(?<!compatible )with\b|persist(?:s|ed)?\b|remain(?:s|ed)?\b|appear(?:s|ed)?\b
    """) + "|:| - ")
NO_MORE = re.compile(rf"{STOP.pattern}|" + cues(r"""
    after\b|following\b|since\b|(?<!^ )(?<!of )(?<!immediate )post\b(?! primary|-)|positive\b
    (?:due|secondary) to\b|only\b|rule out\b|to exclude\b
    and (?:\w+ )?(?:development|placement|insertion|appearance) of\b
    rather\b(?! than)|(?:other|rather) than\b|(?:aside|apart) from\b|besides\b
    (?<=abnormality )beyond\b|(?<=process )beyond\b
    save (?:for|an?|minor|mild|minimal|small)\b""") + "|, suggest")   # "no edema after"

NO = re.compile(cues(r"""
    no\b(?! (?:more|less|fewer) than| longer (?:seen|present|visible|evident|identified|visuali))
    without\b|nor\b|neither\b|rather than\b|negative for\b
    not\b(?! (?:seen|present|identified|visuali[sz]ed|noted|evident)(?:,| and))|never\b|nothing\b
    den(?:y|ies|ied)\b|free (?:of|from)\b|clear of\b|rules out\b|ruled out\b|(?<!to )excludes?\b|history of\b
    lack(?:s|ing)?\b|as opposed to\b|in(?:consistent|compatible) with\b|devoid of\b|fail(?:s|ed|ure)? to\b
    unable to\b|argu\w+ (?:\w+ly )?against\b|cannot (?:see|find|identify|detect)\b
    (?<!failed )(?<!failure of )(?:resolution|disappearance|removal|drainage|absence|clearing) of\b""")
    + r"|(?<!has )(?<!have )(?<!been )(?<!is )(?<!are )(?<!was )(?<!now )\b(?:absent|resolved)\b(?!,)")
GONE = re.compile(cues(r"""
    (?:not|no longer|cannot be) (?:now |(?!previous)\w+ly )?(?:seen|identified|visuali[sz]ed|visible|present
    evident|demonstrated|noted|detected|observed|apparent|suspected|shown|found|developed
    recur(?:red)?)\b(?! (?:before|previous|(?:on|in)$|(?:on|in) (?:the |an? )?(?:pr(?!esent)|yesterday
    earlier|last|old|outside|lateral\b(?! (?:or|and|decub|chest|costo|lung|aspect|sulc)))
    in (?:its|their) entirety))
    no longer (?:appreciated\b|in (?:place|position)\b(?! (?:in|at|within)\b|, (?:now|and|with|termin)))
    not (?:persist|in place)\b|(?:is|are|was|were) not$|nonvisuali[sz]ed\b|gone\b
    remov(?:ed|al)\b|pulled\b(?! back)|disappeared\b|absent\b|resolved\b|cleared\b
    (?<!must be )(?<!should be )(?<!to be )(?:excluded|ruled out)\b
    replaced (?:by|with)\b""")
    + r"|\b(?<!not )(?<!as )(?<!from )(?<!than )(?<!to )(?<!that )previously (?:seen|demonstrated)\b"
    rf"(?!,| (?:[\w-]+ ){{0,3}}(?:{NAMED}))(?!.* (?:again|still|is|are|has|have|now|persist|remain|unchanged"
    r"|stable|smaller|larger|\w+creas|improv|worse|measur|terminat))")
UNSURE_PLACE = re.compile(r"\b(?:possib|probab|question)\w* (?:in|within|at|coil|kink|extend|terminat).*"
                          r"|\breplaced (?:by|with)\b.*|\b(?:is|are) (?:\w+ )?(?:a|the main) concern\b.*")
TIP = re.compile(r"\b(?:tips?|side ?(?:port|hole)s?)\b")  # where that is not seen, its device is there
COLON_NO = re.compile(r"[^,:]*: (?:there (?:is|are) )?(?:no|without|not(?! well| clear| assess| evaluat))\b")
# ", small left effusion" is a new, affirmed item after a denied one, unless a later "or" closes the list.
SIZE = cues(r"""
    small\b|tiny\b|trace\b|mild(?:ly)?\b|minimal(?:ly)?\b|moderate(?:ly)?\b|large\b|stable\b|unchanged\b|low\b
    persistent\b|chronic\b|(?:in|de)creas\w+|worsening\b|improv\w+|residual\b|smaller\b|larger\b""")
NEW_ITEM = re.compile(rf"(?:,|\band) (?:(?!or\b|and\b|no\b|focal\b)[\w-]+ )?(?:{SIZE}|" + cues(r"""
    left\b|right\b|bi(?:lateral|bas|apic)\w*|[rl][ulm]l\b|probable\b|possible\b|likely\b|status\b|a very\b
    at least\b|tortuous\b|enlarged\b|borderline\b|severe\b|marked\b|slight(?:ly)?\b|subtle\b|extensive\b
    diffuse\b|dense\b|patchy\b|hazy\b|streaky\b|linear\b|loculated\b|layering\b|multiple\b
    several\b|scattered\b|new\b|known\b|old\b|heal(?:ed|ing)\b|the\b""") + ")")
ITEM = re.compile(rf"{NEW_ITEM.pattern}|,")
LIST_END = re.compile(rf"{STOP.pattern}|{NEW_ITEM.pattern}|\bno\b")
OR, JOINED, ASIDE = re.compile(r"\bor\b"), re.compile(r",|\band\b"), re.compile(rf"{SIZE}|[:+]")
# "Effusion: small ptx: none"
ANSWERED = re.compile(rf"\w*(?:: (?:{SIZE}|left|right|bi\w+)|:? (?:yes|present))\b")
# ", effusion is small", ", tube in place": an item that says of itself that it is there
ASSERTED = re.compile(r"(?:(?!\bor\b)[^,;])*\b(?:in place\b|unchanged\b|stable\b|as before\b"
                      rf"|(?:is|are|was|were|remains?) (?:now )?{SIZE}|persists?\b|remains?\b"
                      r"|(?:(?:has|have) )?(?:\w+ly )?(?:(?:in|de)creased|improved|worsened|progressed)\b)")
# "No effusion, edema and the heart is stable": behind it something else has a verb of its own
NEXT = re.compile(r" and (?:there (?:is|are)\b|the (?:[\w-]+ ){0,2}?(?:heart|silhouette|mediastinum|aorta"
                  rf"|{DEVICE.pattern})\w*(?: \w+)? (?:is|has|remains|appears)\b"
                  r"|the (?:[\w-]+ ){0,2}?(?:lungs|bones|contours|structures)\b)")
LAST = re.compile(r"\bor (?:(?!and )[\w-]+ ){0,3}$")   # what the "or" of a list introduces is in it

NO_NEW = re.compile(r"\b(?:no|without) (?:\w+ )?new ")  # an old one may still be there
CANNOT = (r"(?:not|(?:no evidence|difficult|hard|(?:not |im)possible|unable) to)"
          r"(?: \w+ly)?(?: be)?(?: \w+ly)? ")
CANNOT_EXCLUDE = re.compile(CANNOT + r"(?:exclud\w*|rul\w* out) ")
NOT_EXCLUDED = re.compile(CANNOT + r"(?:excluded|ruled out|(?:exclude|rule out)(?=\W*$|,| (?:and|given|on"
                          r"|with|at|in|by|due|because|based|from|completely|entirely)\b))")
MAYBE_LEFT = re.compile(cues(r"""
    may\b(?! (?:of )?\d)|might\b|could\b|would\b|possib\w+\b(?! and the)|probabl\w+|presum\w+|question\w*
    suspect\w*|equivocal\b|either\b|perhaps\b|maybe\b|potential\w*|at most\b|if present\b
    limit\w* (?:\w+ ){0,2}(?:(?:evaluation|assessment|detection) for|detection of)\b
    (?:minimal|trace|tiny|small|little|mild|scant),? if any\b
    query\b|low probability of\b
    suspicio\w+ (?:for|of)\b|concern\w* (?:for|of)\b|worrisome for\b|suggest\w* of\b|favor\w*
    consider(?!abl)\w*|likelihood of\b|vs\b|unlikely\b(?!,)|less likely\b(?!,)|doubt\w*|differential\b
    borderline\b|correlate\b|correlation for\b
    more likely (?:(?!rather )[\w-]+ ){0,6}than\b|(?:rule out|to exclude)\b(?!,)
    blunt\w* of .* angles?\b(?!,? (?:\w+ly )?(?:(?:is|are) )?(?:likely )?(?:consistent|compatible|reflect
    represent|suggests|indicat|due|secondary|related|from|caused)|,? and\b)"""))
MODAL = (r"(?:may|might|could|would|should|can|must|needs?|ha(?:s|ve))(?: also)?(?: (?:have|need))?(?: to)?"
         r"(?: also)?")
MAYBE_RIGHT = re.compile(cues(rf"""
    {MODAL} (?:be (?:present|considered|possible|excluded|ruled out|(?:\w+ )?occult)\b|exist\b|not be \w+)
    (?<=: )low (?:probability|likelihood|suspicion)\b
    (?<!raise the )(?<!raises the )(?<!raising the )(?<!raise )(?<!raises )possib\w+
    probably present\b|favou?red(?: over\b|$)|consideration\b|limited\b|question(?:able|ed)\b
    suspected\b|presumed\b|equivocal\b|obscured\b|in the differential\b|if (?:any(?=$|,)|present\b)
    difficult to (?:assess|evaluate)\b|(?:is|are) (?:a|the main|also a) concern\b(?! and)
    (?:poorly|incompletely|not well|suboptimally) (?!defined|circumscribed|marginated)\w+|not appreciated\b
    (?:not|cannot be) (?:\w+ )?(?:assessed|evaluated)\b"""))
# Where doubt ends: "cannot exclude A, with B", "possible A, and B"
BEYOND = re.compile(r", (?:and|with)\b|\b(?:given|(?<!that )there (?:is|are)|(?:due|secondary) to|because of"
                    r"|(?:setting|presence) of|adjacent to|superimposed (?:up)?on)\b"
                    r"|(?:excluded|ruled out)(?! (?:that|is|are)\b|:)")
ANOTHER = re.compile(r", and (?!.*\bor\b)")
UNLIKELY = re.compile(r"[^,]*(?<!and )\b(?:unlikely|improbable|less likely|not \w* ?likely|doubt\w*)\b"
                      r"(?! (?:to )?(?:repr|refl))")
VERSUS = re.compile(r"[\w-]*(?: (?!(?:and|with|or|is|are|due|from|[cw]ould|might)\b|repres|reflec|likely|may"
                    r"|sugges|consis|concern)[\w-]+){0,8},? vs\b")
OR_LEFT = re.compile(r"\bor (?:(?!and |with |no |following |after |status |since |save )\w[\w-]* ){0,4}$")
OR_RIGHT = re.compile(r"[\w-]*(?: [\w-]+| (?:in|at) (?:(?!and |with |no |place )\w[\w-]* ){1,4})? ?\bor\b")
PROXY = re.compile(r"congestion|indistinctness|vascular prominence")  # these hint at edema, no more


def reaches(gap: str, after: str) -> bool:
    """Does a cue before `gap` still speak of the mention behind it, which begins `after`?"""
    if NO_MORE.search(gap) or " vs " in gap or "," in gap and VERSUS.match(after):
        return False
    if JOINED.search(gap) and not LAST.search(gap) and ASSERTED.match(NEXT.split(after, maxsplit=1)[0]):
        return False
    device = DEVICE.match(after) and not DEVICE.search(gap)  # "no pneumothorax, chest tube"
    if device and re.search(r" (?:from|related to) ", gap):
        return False
    for item in ITEM.finditer(gap):
        closed = OR.search(gap[: item.start()])  # by the "or" of "no A or B, C"
        going_on = OR.search(LIST_END.split(gap[item.end():] + after, maxsplit=1)[0])
        if closed and not going_on or (item[0] != "," or device) and (closed or not going_on):
            return False
    return True


# Findings, organs, and what else of a film is spoken of
SUBJECT = re.compile("|".join(word.pattern for word in (*FINDING.values(), *ORGAN.values())) + "|" + cues(r"""
    malignan|\w*adenopathy|empyema|abscess|tuberculosis|embol|dissection|process\b
    lungs?\b|bones?\b|(?:hemi)?diaphragms?\b|angles?\b|remainder\b|rest\b|exam\w*|study\b|views?\b|ct\b
    evaluation\b|assessment\b"""))
JOINT = re.compile(r",| (?:and|or|nor|with|after|following|since|post|despite|due|from|for) ")
CLOSED = re.compile(r"\b(?:and|or|nor)\b")
# A mention with one of these behind it has been spoken of, and is in no list with later ones.
VERB = re.compile(r"\b(?:is|are|was|were|has|have|cannot)\b")
# What is said of a finding without a verb: "edema resolved"
SAID = (rf"{GONE.pattern}|{NOT_EXCLUDED.pattern}|\b(?:not|no|cleared|(?:un)?likely|absent|improved|resolved"
        r"|removed|possible|suspected|questioned|present)\b")
# Between two items of a list: " at the base, "; and of one that a plural verb follows: " and the left "
LISTED = re.compile(rf"(?!.*(?:{STOP.pattern}|{NEW_ITEM.pattern}|{SAID}))[^,:]{{0,40}}"
                    r"(?:,|/|,? (?:and|or|nor) )"
                    r"(?!.*\b(?:possib|probab|question|suspect|resolv|remov))[^,:]*")
TOGETHER = re.compile(rf"(?!.*(?:{STOP.pattern}))[^,:]{{0,40}} and [^,:]*")
PLURAL = re.compile(r"(?:(?! and | is | has )[^,:]){0,40} (?:are|were|have(?! to))\b")
# The rest of a list up to what is said of all its items: ", left effusion, and edema have"
IN_LIST = rf"(?:(?!(?:{STOP.pattern}|{SAID})|,|:| and | or )[^,:]){{1,50}}"
TO_ITS_VERB = re.compile(rf"(?:(?:{IN_LIST})?, (?!and |or )){{0,6}}(?:{IN_LIST})?,? (?:and|or) {IN_LIST}"
                         r"(?= (?:(?:are|were|have(?! to))\b|(?:is|was|can|could) ?not\b))")
# Doubt behind these is about an attribute of the finding, or about the film: "effusion, possibly loculated".
ASPECT = re.compile(r",(?! if\b)| (?:with|in the setting of|on this|for which) ")


def own(left: str, right: str) -> str:
    """What is said behind a mention, that is between `left` and `right`, of this mention: up to the phrase of
    the next one, or, where both are in a list that is closed ("A, B and C are not seen"), behind the last."""
    alone = re.search(r"\b(?:there (?:is|are|was|were)|shows?|demonstrates?|reveals?)\b"
                      r"(?!.*, and )", left)   # has its verb already
    rest = None if alone or STOP.search(left) else TO_ITS_VERB.match(right)
    if rest and (left.count(",") + rest[0].count(",") > 1 or not re.search(", (?:and|or) ", rest[0])):
        return own("", right[rest.end():])
    unclosed, start, end = None, 0, 0
    for m in SUBJECT.finditer(right):
        gap = right[end: m.start()]
        joints = [end + joint.start() for joint in JOINT.finditer(gap)]
        listed = not VERB.search(right, 0, end) and (
            LISTED.fullmatch(gap) and not (alone and STOP.search(right, m.end()))
            or not alone and TOGETHER.fullmatch(gap) and PLURAL.match(right, m.end()))
        pair = left.count(",") + right.count(",", 0, m.start()) < 2   # "A, and B are seen" is said of B alone
        listed = listed and not (pair and re.search(", (?:and|or) ", gap))
        if joints and not listed:
            return right[start:joints[-1]] if unclosed is None else right[:unclosed]
        if CLOSED.search(gap):
            unclosed, start = None, m.end()
        elif joints and unclosed is None:
            unclosed = joints[0]
        end = m.end()
    return right[start:] if unclosed is None else right[:unclosed]


def finding_verdict(left: str, mention: str, right: str) -> float:
    """Is the finding that stands between `left` and `right` in its clause present, absent or uncertain?"""
    predicate = own(left, right)
    verbs = [m.start() for m in STOP.finditer(predicate)]
    predicate = predicate[: verbs[1]] if len(verbs) > 1 else predicate  # up to the end of what its verb says
    if (device := DEVICE.match(mention)) and TIP.search(left + right):
        predicate = re.sub(r"\b(?:not|no longer|cannot|poorly|incompletely|obscured)\b.*", "", predicate)
    if device:   # where it may end is no doubt that it is there
        predicate = UNSURE_PLACE.sub("", predicate)
    cannot = CANNOT_EXCLUDE.search(left)
    beyond = cannot and BEYOND.search(left, cannot.start())
    if cannot and not beyond or NOT_EXCLUDED.search(predicate) or UNLIKELY.match(predicate):
        return UNCERTAIN
    left = left[beyond.end():] if beyond else left
    for no in list(NO.finditer(left))[-1:]:
        if reaches(left[no.end():], mention + right):
            return UNCERTAIN if NO_NEW.search(left) else ABSENT
    if (COLON_NO.match(right) and not (device and SUBJECT.search(right))) or GONE.search(predicate):
        return ABSENT
    if right.endswith(" none") and not (ANSWERED.match(right) or "," in right and ASIDE.search(left + right)):
        return ABSENT
    for maybe in list(MAYBE_LEFT.finditer(left))[-1:]:
        gap = left[maybe.end():]
        apart = maybe[0] == "vs" or "," in gap and SUBJECT.search(gap)   # "possible A, stable B"
        ends = STOP.search(gap) or ANOTHER.search(gap) or "limit" in maybe[0] and BEYOND.search(gap)
        stays = device and JOINED.search(gap) and ASSERTED.match(right)   # "and a tube is in place"
        if not ends and not stays and (not apart or reaches(gap, mention + right)):
            return UNCERTAIN
    doubt = (MAYBE_RIGHT.search(ASPECT.split(predicate, 1)[0]) or VERSUS.match(right) or OR_LEFT.search(left)
             or OR_RIGHT.match(right))
    return UNCERTAIN if doubt or PROXY.search(mention) else PRESENT


# ------------------------------------------------------------------------------------------------------------
# What a clause says about an organ: the adjective before it, or else the first of these words after it

UNSURE = cues(r"""
    (?:upper limits (?:of )?)?normal(?: in size)? (?:or|to) \w+ enlarged\b|borderline\b|obscured\b
    (?:poorly|incompletely|not well|difficult to|(?:can)?not be) (?!enlarg|widen)\w+|stable\b|unchanged\b
    similar\b|abnormal config\w+
    (?:may|might|could|possibl[ey]|probabl[ey])(?: \w+){0,2} (?:enlarg|prominen|widen)\w+""")
NORMAL = cues(r"""
    normal\b|unremarkable\b|upper limits\b|within \w+ limits\b|non-?enlarged\b
    (?:not|neither) (?:(?:\w+|\w+ or \w+|felt to be|thought to be) )?(?:enlarged|widened|abnormal|prominent
    large|dilated)\b
    (?:no|without) (?:\w+ ){0,4}(?:enlarge\w+|widening|cardiomegaly)\b""")
LARGE = cues(r"""
    enlargement of\b|enlarg\w+|prominen\w+|widen\w+|wide\b|increase in\b|increased\b|dilated\b|large\b
    cardiomegaly\b|abnormal\b|(?:greater|larger|bigger|more) than normal\b
    (?:above|exceeds?|beyond|outside)\b[^,]* normal\b""")
VERDICT = re.compile(f"(?P<uncertain>{UNSURE})|(?P<absent>{NORMAL})|(?P<present>{LARGE})")
# "Mediastinum: enlarged nodes", but not "Heart: enlarged since then"
OTHER = re.compile(rf"[^,:]*:.*?{LARGE}\b(?! (?:in|since|compared|and|from|again|with)\b|,|$)")
NEITHER = re.compile(r"\b(?:neither|nor)(?: the)?(?: mediastinal| cardiac)? ?$")
SAME_SIZE = re.compile(r"stable|unchanged|similar")   # a verdict only where there is no other
SAME_BEHIND = re.compile(rf"(?: size)?(?: is| are| remains?)? (?:{SAME_SIZE.pattern})")
VALUES = {"absent": ABSENT, "uncertain": UNCERTAIN, "present": PRESENT}
# Adjective ... organ: "normal heart size and mediastinal contour", but not "heart normal and mediastinum".
ADJECTIVE_GAP = re.compile(
    r"(?: (?!(?:and|in|with|for|or|to|is|are|appears?) )[\w-]+,?"
    r"(?: (?!(?:is|are|with|within|appears?|behind|near|at|along|to|shifts) )[\w,-]+){0,6})? ?")


def organ_verdict(left: str, right: str) -> float:
    """Is the organ between `left` and `right` in its clause enlarged? nan where nothing is said."""
    adjectives = [m for m in VERDICT.finditer(left) if ADJECTIVE_GAP.fullmatch(left[m.end():])]
    said = [m for m in VERDICT.finditer(own(left, right)) if not SAME_SIZE.fullmatch(m[0])]
    # "Large effusion, heart size normal": of what stands before
    if adjectives and (said or SAME_BEHIND.match(right)) and "," in left[adjectives[-1].end():]:
        adjectives = []
    verdict = adjectives[-1] if adjectives else said[0] if said else VERDICT.search(right)
    if not adjectives and verdict and verdict["present"] and OTHER.match(right):
        return nan
    if adjectives and verdict["present"]:  # "no cardiomegaly or widened mediastinum": a finding, as any other
        return finding_verdict(left, "", right)
    if verdict and verdict["present"] and NEITHER.search(left):
        return ABSENT
    return (UNCERTAIN if right.endswith("questionable") else VALUES[verdict.lastgroup]) if verdict else nan


# ------------------------------------------------------------------------------------------------------------
# Report -> labels

TYPESET = str.maketrans({letter: meant for letters, meant in (
    ("’‘ʼ´′＇`\x92\ufffd", "'"), ("–−‑‐\x96", "-"), ("•·●▪◦‣", "; "), ('"“”{}*', ""), ("—", " - "),
    ("±", "+/-"), ("_", " "), ("…", "..."), ("\xad", ""), ("&", " and "), ("☐□", "[ ]"), ("☑☒✓✔", "[x]"),
    ("ﬀ", "ff"), ("ﬁ", "fi"), ("ﬂ", "fl"), ("ﬃ", "ffi"), ("ﬄ", "ffl")) for letter in letters})
SHORT = (("â€™", "'"), ("can't", "cannot"), ("n't", " not"), ("w/o", "without"), ("r/o", "rule out"),
         ("not normal", "abnormal"), ("not only", "also"), ("v/s", "vs"), ("n/a", "not assessed"),
         ("[x]", ";"), ("(+)", ";"), ("d/c'd", "discontinued"), ("+/-", "possible "), ("and/or", "or"),
         (",", ", "))
# The point of an abbreviation ends no sentence.
POINT = re.compile(r"\b((?i:sig|signif|evid|comp|approx|i\.e|e\.g|neg|pl)|(?i:rt|lt)(?=\. (?:upper|mid\w*"
                   r"|lower|lungs?|hemi\w+|sided?|bas\w+|cp|costo\w+|\w*hil\w+|para\w+|ap(?:ex|ical)|pleural|zone|ij"
                   r"|subclavian|pneumothorax|effusion|main|ribs?|clavic\w*)\b))\.(?=,? [a-z])")
OPTION = r"(?:none|no|yes|small|mild|moderate|large|severe|trace)\b"   # behind a box: "[ ] small [x] large"
SLASHED = {"s/p": "status post", "c/w": "consistent with", "c/f": "concern for",
           "b/l": "bilateral", "d/t": "due to", "a/w": "with", "h/o": "history of", "y/o": "old"}
# "Pneumothorax: none", "Pneumothorax - no", "Pneumothorax (-)": an answer, with which its clause ends.
CLOSE = r"\s*(?:\.(?!\d)|[,;)\]|]|/ |$)"
END = rf"(?={CLOSE}|\s*\w[\w/ ]{{0,40}}(?:[:=?]| none;))"
NONE = r"(?:none|nil|no|n|neg|negative|absent|false|0(?:\.0)?|-(?:ve)?)"
ANSWER = re.compile(r"(?:[:=?|-]>?|(?<!\.)\.{2,}) ?"
                    rf"[(\[<]?(?:(?:none|nothing)\b(?! of)|nil\b|{NONE}{END})[)\]>]?"
                    rf"|[(\[](?:{NONE}| ?)[)\]]|(?:(?<=\s)|;\s?)(?:none|nil|neg(?:ative)?|-(?:ve)?){END}"
                    rf"|(?<=\s)no(?={CLOSE})|(?<=[a-z]\s)0(?={CLOSE})")
# "Effusion: small, now resolved", "Heart: stable, enlarged": what comes last counts, this goes.
OUTDATED = re.compile(rf"(?<=[a-z]:) ?{SIZE}, ?(?=(?:now |can)?(?!previously)(?:{GONE.pattern}"
                      rf"|{NOT_EXCLUDED.pattern}|if (?:any|present)|(?:possib|probab|uncertain|unclear"
                      rf"|unlikely|questionabl|equivoc|maybe)\w*){CLOSE})"
                      rf"|(?<=(?:heart|.size|uette|tinum|tours):) ?{SIZE}, ?(?=(?:{NORMAL}|{LARGE}){CLOSE})")
# "Pneumothorax: +" is one, too; "Findings: 1. Edema" begins a list.
YES = r"(?:yes|y|pos(?:itive)?|present|true|1(?:\.0)?(?!\.\s*[a-z])|\+(?:ve)?)"
AFFIRMED = re.compile(rf"(?:[:=?|-]>?) ?[(\[<]?(?:{YES}|(?P<size>{SIZE})){END}[)\]>]?|[(\[]{YES}[)\]]")
# "Pneumothorax; no": a semicolon with nothing but an answer behind it is a colon.
SEMICOLON = re.compile(r" ?;(?! (?:not large|no (?:\w+ ){0,4}cardiomegaly))"
                       rf"(?= ?(?:{NONE}|none \w+|no evidence|{GONE.pattern}|{NORMAL}|{LARGE}"
                       rf"|(?:possib|probab|uncertain|unclear|unlikely|questionabl|equivoc|maybe)\w*)"
                       rf"{CLOSE})")
# "None of the following: effusion, edema." Each item is denied, to the end of the sentence.
NONE_OF = re.compile(NONE_HEAD + r" ?((?:[^.]|\.\d)*)")
# "+effusion, -pneumothorax" is such a list; "-effusion" alone is an item behind a dash, "C5-C6" a range.
SIGN = re.compile(r"(?<![^\s,;:(/])([+-])(?=[a-z]{3})")
SIGNED = re.compile(r"(?:^|\W)\+[a-z]{3}|[,;/] ?-[a-z]{3}")
# "Pneumonia v atelectasis", but neither "grade V fracture" nor "a v. small effusion"
V = re.compile(r"\b(?!(?:\w|[ivx]+|an|the|is|are|and|with|no|of|grade|type|stage|class|segments?|zones?"
               r"|factor|nerve|ribs?|levels?|harris)\b)(\w+[,)]?) v\.? (?!(?:and|or|is|leads?|fib|tach)\b)")
# What only sounds like a finding: "fracture line", "mass effect".
SOUNDS = re.compile(r"\b(kerley(?: b)?|b|septal|fracture|pleural|fissure|fat|skin|growth|\w*spinal"
                    r"|\w*tracheal|mediastinal|junction|\w*esophageal|axillary|\w*clavicular)[ -]lines?\b"
                    r"|\b(body|muscle) mass\b|\bmass[ -](effect)|\b(aortic|mitral) valv\w+(?= calcif)"
                    r"|\b(calcifi\w+ of (?:the )?(?:aortic|mitral)) valve\b(?! (?:prosth|repl|repair))")
def clean(text: str) -> list[str]:
    """Report -> its sentences: lower case, one space between words, "a/b" and "and/or" read as "or"."""
    text = POINT.sub(lambda m: m[1].replace(".", ""), one_line(text)).lower().translate(TYPESET)
    text = re.sub(r"\b(ca|(?:c|w)ould|do|does|did|is|are|was|were|has|have)nt\b", r"\1n't", text)
    text = re.sub(r"(?<!:)(?<!: )\[ ?\] *([a-z][^\[.;]*)", r"; no \1;", text)   # "[ ] Effusion [x] Edema"
    text = re.sub(rf"\[ \] *{OPTION}|\[x\] *(?={OPTION})", "", text)
    text = re.sub(r"--(?= ?\w)", " - ", text)
    text = NONE_OF.sub(lambda m: "; no " + re.sub(r"[,;]|\band\b", "; no ", m[1]), SEMICOLON.sub(":", text))
    text = re.sub(r"(\(\w+ )?\(?\b(?:\d\d?|[a-h])\) ", lambda m: m[0] if m[1] else "; ", text)  # "2) Edema"
    text = re.sub(rf"\b(?:{'|'.join(SLASHED)})\b", lambda m: SLASHED[m[0]], text)
    text = re.sub(r"\(-\) ?(?=[a-z])", "; no ", text) if re.match(r"\([+-]\)", text) else text
    text = re.sub(r"(?:^|(?<=[,;] ))\(-\) ?(?=[a-z])", "no ", text)             # "(-) effusion, (+) edema"
    text = re.sub(r"(?<![\dm] )(?<!\d)[ø∅] (?=[a-z])", "no ", text)   # no diameter
    if ":" in text:
        text = re.sub(r"(?<=: )(?:probab\w+|uncertain|unclear|indeterminate|maybe)\b", "possible",
                      OUTDATED.sub(" ", text))
    text = ANSWER.sub(" none;", text)
    text = AFFIRMED.sub(lambda m: f": {m['size']};" if m["size"] else " present;", text)
    text = re.sub(r":\s+", ": ", text.replace("|", ", "))
    if "?" in text:
        text = re.sub(r"\(\?+ ?([^()?]+)\)", r"; question \1; ", text)
        text = re.sub(r"(?<!\S)\?+ ?(?=\w)", "question ", text)
        text = re.sub(r"(?<=\w)\?+ (?=[a-z]+(?:\.|$))", ": ", text)       # "Effusion? Small."
        text = re.sub(r"(?<=[\w:]) ?(?:\(\?+\)|\?+)", " questionable. ", text)
    for short, full in SHORT:
        text = text.replace(short, full)
    text = " " + " ".join(re.sub(r"/(?<=[a-z]/)(?=[a-z])", " or ", text).split())
    text = SOUNDS.sub(lambda m: m[m.lastindex], text).replace(" non-", " non").replace(" non ", " non")
    text = re.sub(r"[ (-]+v(?:ersus\b|s\b\.?|\.s\.)[ -]*", " vs ", V.sub(r"\1 vs ", text))
    sentences = re.split(r"[.!?]+(?:(?!\d)|(?<=[^\d\s.!?]\.))", text)  # no decimal point
    sentences = [SIGN.sub(lambda sign: "; no " if sign[1] == "-" else "; ", sentence)
                 if SIGNED.search(sentence) else sentence for sentence in sentences]
    return [sentence.strip() for sentence in sentences if sentence.strip()]


@lru_cache(maxsize=1 << 16)
def sentence_mentions(sentence: str) -> tuple[tuple[str, float], ...]:
    """Every mention in a cleaned sentence as (label, verdict). Kept, as sentences repeat."""
    sentence, found, start = plainer(sentence), [], 0
    for stop in [*(m.start() for m in CLAUSE.finditer(sentence)), len(sentence)]:
        clause, start = sentence[start:stop], stop
        colon, said = clause.find(":"), []
        for name, pattern in (*FINDING.items(), *ORGAN.items()):
            for m in pattern.finditer(clause):
                left, right = clause[max(0, m.start() - WINDOW): m.start()], clause[m.end(): m.end() + WINDOW]
                organ = pattern is ORGAN.get(name)
                verdict = organ_verdict(left, right) if organ else finding_verdict(left, m.group(), right)
                said.append((name, verdict, m.start() > colon))
                if name == "Edema" and verdict != ABSENT and re.search("failure|chf", m.group()):
                    said.append(("Cardiomegaly", UNCERTAIN, m.start() > colon))
        answered = {name for name, _, behind in said if behind}  # "Effusion: no effusion" is one mention
        found += [(name, verdict) for name, verdict, behind in said if behind or name not in answered]
    return tuple((name, verdict) for name, verdict in found if not isnan(verdict))


def merge(verdicts: set[float]) -> float:
    """The verdicts of a label's mentions -> its value: doubt beats denial; else one affirmation is enough."""
    if {ABSENT, UNCERTAIN} <= verdicts:
        return UNCERTAIN
    return PRESENT if PRESENT in verdicts else next(iter(verdicts))


@lru_cache(maxsize=1 << 16)
def label_values(report: str) -> tuple[float, ...]:
    verdicts: dict[str, set[float]] = {}
    sentences = clean(report)
    for sentence in sentences:
        for name, verdict in sentence_mentions(sentence):
            verdicts.setdefault(name, set()).add(verdict)
    values = {name: merge(seen) for name, seen in verdicts.items()}
    ill = any(value != ABSENT for name, value in values.items() if name != "Support Devices")
    says = any(WORDED.search(sentence) and not NO_CHANGE.fullmatch(sentence) for sentence in sentences)
    values["No Finding"] = PRESENT if says and not ill else nan
    return tuple(values.get(name, nan) for name in LABELS)


def label(report: str) -> list[float]:
    """report -> 14 values in the order of LABELS: 1.0 present, 0.0 absent, -1.0 uncertain, nan not mentioned.

    "No Finding" is 1.0 where nothing but devices is present or uncertain, and nan otherwise (never 0.0).
    """
    return list(label_values(report))


def label_all(reports: list[str]) -> Tensor:
    """reports (n) -> labels (n 14) float32. A report seen before costs nothing."""
    values = [label_values(report) for report in reports]
    return torch.tensor(values, dtype=torch.float32).view(-1, len(LABELS))
