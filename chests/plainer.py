"""A sentence of a report -> the same in plainer words, which labels.py reads from left to right."""

import re

from chests.findings import FINDINGS
from chests.reports import cues

*ILLNESSES, DEVICES, _ = map(cues, FINDINGS.values())
ILLNESS = "|".join(ILLNESSES)
NAMED = f"{ILLNESS}|{DEVICES}"

# Either of two places or devices is no doubt about the finding: "mid or lower", "NG or OG"
PLACE = (r"(?:left|right|upper|mid(?:dle)?|lower|lingul\w+|\w*hilar|(?:bi)?basilar|basal|retrocardiac|apical"
         r"|lateral|medial|anterior|posterior|interstitial|alveolar|[no]gt?|ett?|\w+gastric|endotracheal|svc"
         r"|central|peripheral|picc|dob\w+|feeding|enteric)")
# Nor is either of two words for how much, of what form, how old
FORM = (r"(?:mild|small|mod(?:erate)?|severe|large|trace|tiny|minimal|one|two|three|four|more|less|just"
        r"|at|new|enlarging|subacute|lobar|stable|unchanged|smaller|larger|(?:in|de)creas(?:ed|ing)"
        r"|improv(?:ed|ing)|worsen(?:ed|ing)|linear|\w*segmental|patchy"
        r"|streaky|hazy|\w*nodular|reticular|loculated|layering|acute|chronic|old|heal(?:ed|ing)|cavitary"
        r"|necrotic|\d+(?:st|nd|rd|th)?)")
ON_A_SIDE = r"(?:on|in) the (?:left|right)(?: side| lung)?"
# "No change in the effusion", "not completely resolved effusion", "no layering of the effusion" deny a change
# or an attribute: read as "unchanged".
DEGREE = (r"(?:(?:[\w-]*(?:al|ant|able|ible|ous|ent|ite|ic|ly)|complete|full|acute|short|major|much|yet"
          r"|been|appear|evidence[ ]of|sig(?:nif)?)[ ]){0,4}")
# What follows a word of advice: "be obtained to better evaluate the", "follow-up CT for the", "pulling back"
ADVICE = (r"(?!.{0,200}\b(?:whether|if|possib|exclu|rule|vs|versus|question)\w*\b)"
          rf"(?:(?!(?:after|following|since|post|status)\b|{ILLNESS})[\w-]+ ){{0,8}}?(?:"
          r"(?:to|for|of) (?:[\w-]+ ){0,2}?(?:evaluat|assess|characteri[sz]|quantif|visuali[sz]|document"
          r"|follow|delineat|defin|determin|clarif|localiz)\w*"
          r"(?: (?:the )?(?:stability|chronicity|resolution|extent|size|nature|position))?(?: of)?"
          r" (?:the|this|these|that)\b(?! (?:presence|existence))"
          r"|(?:be (?:performed|obtained|considered|done|repeated) for"
          r"|(?:ct|mri|films?|radiographs?|views?|series|ultrasound|imaging|follow-?up|correlation)"
          r" (?:for|of)) (?:the|this|these)\b"
          r"(?! (?:\w+ )?(?:evaluation|assessment|detection|diagnosis|identification|confirmation) of "
          r"(?!the|this|these))"
          r"|(?:better|further) (?:evaluat|assess|characteri[sz]|delineat|visuali[sz])\w* the\b"
          r"|(?:recommend )?(?:advanc|retract|withdraw|reposition|exchang|replac|remov)(?:ing|al|ement)\b"
          r"|(?:recommend )?(?:pull|draw)ing back\b"
          r"|(?:diuresis|thoracentesis|drainage|bronchoscopy|biopsy)(?: (?:for|of)\b|$))")
# One of several, and what is said of it alone: "may represent A, B, and C", but not "..., and C is stable"
SAID = r" (?:is|are|was|were|has|have|remains?|persists?|unchanged|stable)\b"
ITEM = (r"(?! (?:no|new|stable|unchanged|similar|(?:\w+ly )?(?:worse|improved|(?:in|de)creased))\b)"
        rf"(?:(?!{SAID}| (?:with|which|there)\b) [\w-]+){{1,4}}")
# What says the same in words that end no denial: "does not appear to be", "is seen to suggest" ...
PLAINER = [(re.compile(pattern), words) for pattern, words in (
    (r"\bnot (?:appear|seem|have|believe|think|feel|felt|thought)(?: to (?:be|have)(?: been)?)?(?: that)?"
     r"(?: there (?:is|are))?\b", "not"),
    (r"\b(?:is|are|was|were) (?:(?:seen|present|identified|noted|found|evident) )?"
     r"(?=to (?:suggest|indicate))", ""),
    (r"\bevidence that there (?:is|are)\b", "evidence of"),
    (r"\bneither (?:lung|side|hemithorax) has\b", "no"),
    (r"\bneither ((?:[\w-]+ ){1,5})nor ((?:[\w-]+ ){1,5})ha(?:s|ve) (?:\w+ly )?(?:changed|progressed"
     r"|(?:in|de)creased|worsened|improved|resolved|cleared)\b", r"unchanged \1and \2"),
    (r"\bneg(?:ative)?(?: for)?(?= (?!chest|exam|study|film|radiograph|x)\w)", "negative for"),
    (r"(?:\b(left|right),? (?:but|and) not|(?<!the )\b(left|right),? (?:but|and) (?:no|absent|resolved"
     r"|cleared)) (?:left|right)(?:-sided)?,? ", r"\1\2 "),
    (rf"\b(?:has|have|is|are) (?:\w+ly )?(?:resolved|cleared)(?: {ON_A_SIDE},? (?:but|and) (?:persists?"
     r"|remains?|not(?= (?:on|in|the)\b)|is(?! (?:now )?(?:clear|normal|unremark)))"
     r"|,?(?: and| but| while)? the (?:left|right)(?: one)? (?:has|is|remains|persists)\b"
     r"(?! (?:(?!near|part|most|larg)\w+ly |now |also |been )*(?:clear|resolved|gone|absent|not?\b|normal"
     r"|unremark|expand|removed|well|free)))\b", "persists"),
    (rf"\b({ON_A_SIDE}),? (?:and|but) (?:(?:is|has) )?(?:not(?: seen| present)?|absent|resolved|cleared) "
     rf"{ON_A_SIDE}", r"\1"),
    (r"\bwithout (?:iv |intravenous )?(?:contrast|(?:prior )?comparison|lateral)\b,?", ""),
    (r"\b(?:document|[ei]nsure|confirm|assess|evaluate|verify|check|until|for)(?: for)?(?: the)?"
     r"(?: complete| full| interval)? (?:resolution|clearing) of\b", "follow"),
    (r"\b(?:un|not )(?:clear|certain|sure) (?:if|whether)(?: there (?:is|are)| this (?:is|represents))?\b",
     "possible"),
    (r"\b(?:after|following|since|post) (?:[\w-]+ ){1,4}(?=ha(?:s|ve) (?:\w+ )?resolved)", ""),
    (rf"\b({PLACE}(?: lobe| zone| lung)?|pace\w+|a?icd) or "
     rf"(?=(?:the )?{PLACE}\b(?! or)|(?:a?icd|defib\w+)\b)", r"\1-"),
    (r"\b(?:(?:possib|probab)ly|perhaps|maybe) with\b", "possible"),
    (r"\bconcern is for\b", "concern for"),
    (r"\b(is|are) (?:a|of) concern for\b", r"\1 concerning for"),
    (r"\b(argu\w+ (?:\w+ly )?against [^,;]{1,80}?),? (?:and (?=for\b|favou?r|suggest)"
     r"|(?=consistent|compatible|suggest|favou?r))", r"\1; "),
    (r"\b(?:evaluate|assess|look|check|screen) for (?!.*\b(?:show|demonstrat|reveal))"
     r"(?=(?:(?:an?|any|acute|small|new|apical|underlying|evolving|developing|layering|loculated"
     rf"|metastatic) )*(?:{ILLNESS})(?!\w* healing))", "possible "),
    (r"\bnot (?:\w+ )?(?:imaged|included|obtained|visuali[sz]ed|seen),? "
     r"(?=limiting (?:[\w-]+ ){0,2}(?:evaluation|assessment|detection))", ""),
    (r"\b(evaluation|assessment|detection) (?:is|was) (?:\w+ly )?limited for\b", r"limited \1 for"),
    (rf"(?:^|(?<=[,;] ))in (?:the )?absence of (?:(?!{NAMED})[^,;])*, ", ""),
    (r"\bnot (?:been )?(?=(?:complete|full|total) (?:resolution|clearing) of\b)", "without "),
    (r"^no longer (?:seen|visuali[sz]ed|present|evident|identified) (?:is|are)\b"
     r"|\bno longer (?:has|have|shows?)\b", "no"),
    (r"\bnot well-(?=\w)", "not well "),
    (r"\b(?:no|without) (?:(?:evidence|signs?) of )?(?=(?:[\w-]+ )?(?:hardware|device|line|lead|catheter)s? "
     r"(?:failure|fractures?\b(?!,| (?:or|nor)\b)|complications?|loosening|malposition))", ""),
    (r"\bin line with\b", "consistent with"),
    (r"\bnormal (?=interstitial marking)|\b(?=interstitial markings (?:are|appear|remain) (?:\w+ly )?"
     r"(?:normal|unremarkable|within normal|not (?:\w+ly )?(?:increased|prominent)))", "no "),
    (r"\b(?:one|two|1|2) of (?:the )?((?:[\w-]+ ){1,4})(?:(?:ha(?:s|ve)|was|were) (?:been )?removed"
     r"|(?:(?:(?:has|have) been|was|were) )?discontinued)\b", r"\1remains"),
    (r"\bremoval of (?:one|two|1|2) of\b", ""),
    (r"\b(?:recommend\w*|consider|advis\w*|(?:^|(?<=we )|(?<=would ))suggest) (?:(?!interval|recent|prior)"
     r"\w+ )?removal of\b|(?<!interval )(?<!after )(?<!following )(?<!post )\bremoval of (?=(?:(?!and )"
     r"[\w-]+ ){1,6}?(?:is|are) (?:recommended|suggested|advised|planned))", ""),
    (r"\b(?:should|could|can|may|must|needs? to) be (?:\w+ )?(?:removed|pulled)\b", "remains"),
    (r"\b(tubes?|lines?|\w*catheters?|drains?|picc)((?: (?:has|have) been| was| were)?) discontinued\b",
     r"\1\2 removed"),
    (r"\b((?:removal|resolution|drainage|clearing|disappearance) of [^,;]{1,60}?),? result(?:s|ed|ing) in\b",
     r"\1;"),
    (r"\b((?:after|following|since|post) (?:\w+ )?removal of (?:[\w-]+ ){0,5}?"
     r"(?:tubes?|drains?|catheters?|lines?|picc)) (?=(?:an?|the|there|no|small|tiny|new|trace|minimal"
     r"|moderate|large)\b)", r"\1, "),
    (r"\b((?:resolution|clearing|disappearance|(removal)|drainage) of (?:[\w-]+,? ){1,8}?and )(?:of )?"
     r"(?:the )?(?:left|right|bilateral|bibasilar|biapical)(?:-sided)? "
     rf"(?(2)(?=(?:[\w-]+ ){{0,3}}(?:{DEVICES})))"
     r"(?!.*\b(?:plac|insert|in place|now|new|again|tip\b|terminat|is\b|are\b|remain|persist))", r"\1"),
    (r"\b((?:no|without|nor|or|of|an?|any|acute|immediate|\w+a(?:nt|ble)|definite|large|obvious|visible"
     r"|evident|other|new) )post (?=(?:procedur|intervention|biops|operativ|surg|traumat|thoracentesis)\w* "
     rf"(?:[\w-]+ )?(?:{NAMED}))", r"\1post-"),
    (r",? (?:which|that) (?:was|were|had been) [^,:]{1,80}?,?(?= (?:is|are|ha(?:s|ve))\b)", ""),
    (r"(?<! for)(?<! of)(?<! in)(?<! from),? which (?=(?:is|are|was|were|has|have)\b)", " "),
    (r"\bbut (?=(?:(?:is|still|now|remains?|appears?|\w+ly) ){0,3}(?:enlarged|widened|dilated)\b)", "and "),
    (r"\bwnl\b", "within normal limits"),
    (r"^((?:there is |the |an? |again(?: seen is)? |[\w-]+ly |persistent |stable ){0,4}"
     r"(?:normal|enlarged|widened|prominent))(?:,| but|, but| and) "
     r"(?:stable|unchanged)(?= (?:heart|cardi\w+|mediastin\w+|\w*silhouette))", r"\1"),
    (r"\bno (?:better|worse|larger|smaller|bigger)\b(?= *(?:$|[,:]|(?:than|and|or|but|in|on|at|since|compared"
     r"|from|when|now|today)\b))", "unchanged"),
    (r"\bnewly appear(?:ed|ing)\b", "new"),
    (r"\bwith or without\b(?!.*\b(?:excluded|ruled out))", ", possible"),
    (r"\b(or|and),? less likely,", r"\1 possible"),
    (r",? but not (?:diagnostic|specific|definitive|pathognomonic),? (?:of|for)\b", ", possible"),
    # Advice is no doubt: "CT could be obtained to evaluate the mass", "consider advancing the tube"
    (rf"\b(?:consider|could|would|may|might)\b(?= {ADVICE})", ""),
    # The last of several that are possible: "may represent atelectasis, aspiration, and pneumonia"
    (r"\b((?:may|might|could) (?:represent|reflect|be|indicate)|(?:differential|etiolog\w+|considerations?"
     rf"|possibilities)(?: [\w-]+){{0,4}}? includ\w+)({ITEM},(?:{ITEM},){{1,6}}) and(?! there"
     rf"| (?:no|stable|unchanged|similar)\b|{ITEM}{SAID}| (?:[\w-]+ ){{0,3}}(?:{DEVICES}))", r"\1\2 or"),
    (r"\bnor (?:is|are|was|were|has|have|does|do|can)\b(?: there)?(?: be)?(?: any)?", "nor"),
    (rf"^(?=.* or )((?:(?!\b(?:no|not|without|nor|negative|free)\b).)*\b{FORM}) or (?:\w+ly )?(?={FORM}\b)",
     r"\1-"),
    (rf"\b(no|without) ((?:[\w-]+,? ){{1,8}})(?<!development )or (?={DEGREE}(?:change|improvement"
     rf"|progression|worsening|migration) (?:in|of) (?:(?!(?:to|or) )[\w-]+ ){{0,5}}?(?:{NAMED})"
     r"(?:(?! or | to sugg| suggestive)[^,;])*$)", r"\1 \2; no "))]

SAME = re.compile(rf"""(?x) \b(?: (?:no|without|lack[ ]of|little(?:[ ]if[ ]any)?)[ ]{DEGREE}(?:
    change(?!s?,?[ ]or[ ]\w+\b(?![ ](?:in|of))|s?,[^.]*[ ]or[ ]|s[ ]of[ ]|s?[ ]to[ ]suggest)|(?:in|de)crease
    |improvement|progression|difference|worsening|growth|(?<=interval[ ])enlargement|resolution|clearing
    )s?\b(?:[ ]or[ ]\w+)?(?:[ ](?:in|of)\b)?
    |(?:no|without)[ ]{DEGREE}(?:tension|displacement|cavitation|calcification|loculation|layering|healing
    |shift|migration|discontinuity|kink\w*|(?:tension[ ])?component|air[ ]bronchogram|air-fluid[ ]level)s?
    (?:[ ]or[ ]\w+)?[ ](?:of|in|within|to|from)\b
    |(?:not|never|partly|partially|incompletely|nearly|almost|mostly|largely)[ ]{DEGREE}(?:chang|increas
    |decreas|improv|progress|differ|worse|resolv|cleared|remov|disappear|larger|smaller|bigger)\w*
    |(?:fail\w*|unable)[ ]to[ ](?:resolve|clear|improve|change)\b
    |(?:partial|incomplete|near(?:[ -](?:complete|total))?|some|slight|mild|moderate|marked|significant
    |substantial|further|ongoing|continued|gradual)[ ](?:interval[ ])?(?:resolution|clearing)[ ]of )
    (?: (?<=in|of)(?P<list>[^;:]*) )?""")   # "... in the effusion or the edema": both
# "Not free of edema", "no doubt about the edema": two denials affirm.
TWICE = re.compile(r"\b(?:no|not)(?: \w+ly)? (?:without|free (?:of|from)|clear of|absent|devoid of|doubt)\b")


def plainer(sentence: str) -> str:
    for pattern, words in PLAINER:
        sentence = pattern.sub(words, sentence)
    sentence, again = TWICE.sub("with", sentence), 50
    while again and (same := SAME.search(sentence)):   # from left to right: a list may hold the next one
        listed = (same["list"] or "").replace(" or ", " and ")
        sentence, again = f"{sentence[:same.start()]}unchanged{listed}{sentence[same.end():]}", again - 1
    return sentence
