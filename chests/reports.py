"""The text of a report: what is markup, what says something, and which sections it has."""

import re
from difflib import get_close_matches
from html import unescape

from chests.findings import FINDINGS, ORGANS


def cues(lines: str) -> str:
    """One alternative a line -> a regular expression, each starting at a word."""
    return r"\b(?:" + "|".join(line.strip() for line in lines.strip().splitlines()) + ")"


# ------------------------------------------------------------------------------------------------------------
# Text on one line

# "None of the following: effusion, edema." What heads a list of what is denied.
NONE_HEAD = (r"(?:\b(?:no|none|neither|without|negative|free|not (?:have|show|see))"
             r"(?: (?:evidence|signs?|of|for|any|all|the|(?:following|below|these)(?: findings?)?"
             r"|is|are|was|were|seen|present|identified|noted))+"
             r"|(?:^|(?<=[.;\n] ))(?:no|ruled out|(?:the following(?: findings)? are )?(?:absent|not (?:seen"
             r"|present|identified))|(?:pertinent )?(?:negatives?|(?:negative|absent) findings?))):")
BULLET = r"(?:(?:[-*•>+]|\d+[.)]) |[-•■▪●◦\uf0b7] ?(?=[A-Z][a-z]))"
PART_HEAD = r"(?:[A-Z][A-Z /&,()-]{2,40}:|\[[A-Z][A-Z /&,()-]{2,40}\])"   # "PLEURA:", "[PLEURA]"
ITEM_ALONE = r"(?!.*\b(?:is|are|was|were|has|have|there)\b)[\w(/][\w()/ -]{0,40}[.,;]?(?=\n|$)"
NONE_LINES = re.compile(rf"(?i)({NONE_HEAD})((?:\n+{BULLET}.+)+|\n?(?:\n{ITEM_ALONE})+)")
ITEM_LINE = re.compile(rf"(?m)^(?:{BULLET})?(.+?)[.,;]?$")
# Not "___", "XXXX", "none", "see above": a text without a word of its own says nothing.
WORDED = re.compile(r"(?i)\b(?!(?:x+|none|nan?|nil|null|not|assessed|as|same|see|of|the|to|refer|please|above"
                    r"|below|per|in|body|details?|comments?|full|findings?|impression|section|final|report"
                    r"|(?:not|dictat|discuss|mention|record|report|redact|describ|stat|provid)ed|pending"
                    r"|blank|(?:un)?available|done|applicable|missing|tbd|empty|given|data"
                    r"|yes|true|false|no (?:report|data|impression))\b)"
                    r"[a-z]{2,}")

# What a failed download or an unfetched file leaves in a report's place; where it lies; that there is none
NO_REPORT = re.compile(r'(?is)\s*(?:(?:<(?:!doctype|html|head|error|\?xml)|\[?\{\s*")(?=.{0,3000}\b(?:'
                       r"errors?|not found|forbidden|denied|unauthori[sz]ed|(?:sign|log) ?in|limit|moved"
                       r"|gateway|unavailable|javascript|cookies?|code|message)\b)"
                       r"(?!.{0,3000}\b(?:findings|impression|effusion|lungs?|heart)\b)"
                       r"|version https://git-lfs|\S*/annex/objects/"
                       r"|(?:(?:http/[\d.]+|http error|error:?) )?[45]\d\d:? (?:not found|forbidden"
                       r"|unauthori|bad (?:request|gateway)|internal server|service unavail"
                       r"|too many requests|gateway|proxy error)"
                       r"|(?:access denied|(?:(?:file|page) )?not found|3\d\d (?:found|moved \w+)|forbidden"
                       r"|unauthori[sz]ed|internal server error|error: (?:\w*error|timeout|failed)"
                       r"|\[object object\]|series\(\[\].*|undefined(?: undefined)*"
                       r"|<(?:image|none|null|unk|pad)>|missing value|(?:exam|study|order|test) cancell?ed"
                       r"|(?:not (?:yet )?|un)reported|report (?:withheld|to follow)|dictated separately"
                       r"|(?:please )?(?:see|refer to) (?:pacs|ris|dictation|addendum|(?:\w+ )?report)"
                       r"|[\w./\\:-]+\.(?:txt|xml|pdf|docx?|html?))[\s.!]*$)")

# "No significant interval change." says nothing of what is there.
SINCE = r"(?:since|from|(?:(?:as|when) )?compared (?:to|with)|in comparison (?:to|with)) "
DEGREES = (r"(?:(?:significant\w*|interval|relevant|substantial\w*|appreciable|overall|major|definite|evident"
           r"|if any|marked|radiographic|notable|important|clinically|further|short[ -]term|great|convincing)"
           r",? )")
FILM = (r"(?:(?:portable|chest|radiographic) ){0,2}(?:chest|exam\w*|study|appearance|radiographs?|films?"
        r"|x-?rays?)")
NO_CHANGE = re.compile(
    rf"(?i)\W*(?:\d[.)])?\W*(?:{SINCE}[^.,;]{{1,60}}, )?(?:there (?:is|has been) )?"
    rf"(?:(?:no|little|without),? {DEGREES}{{0,4}}changes?"
    rf"|(?:(?:is|are|appears?|overall|otherwise|\w+ly) )*(?:unchanged|not changed|stable)"
    rf"(?: {FILM}(?: of the chest)?)?)(?: {SINCE}(?:(?!(?:with|and|but) )[^.,;]){{1,60}})?\W*")


def worded(text: str) -> bool:
    """Does any sentence say something of its own? (In other letters than ASCII that is taken for granted.)"""
    return not text.isascii() or any(WORDED.search(sentence) and not NO_CHANGE.fullmatch(sentence)
                                     for sentence in re.split(r"(?<=[.;])\s+", TITLE.sub("", text)))


OPEN = (r"(?:\b(?:(?<![:;|=?-] )(?<!\t)no|not|of|or|and|the|an?|with|without|for|to|in|on|by|is|are|was|be"
        r"|possible|likely|(?:the|of) (?:left|right))|[,/])")
# Tags of HTML, and Markdown's; group 1: those that begin a new line
TAG = re.compile(r"(?i)</?(?:(p|br|div|li|ul|ol|tr|table|h\d)|b|i|u|em|strong|small|span|font|su[bp]|a|td|th"
                 r"|html|body|pre|code)(?:\s[^<>]*)?/?>|\*\*|(?<![^\n])#+ ")
# As exports spell a line break; rules
BREAK = re.compile(r"\\{1,8}[rnt]|\\x0[ad]|_x000[ABD]_|\\\.br\\|\\X0[AD]\\|</?s>|<sep>|\[SEP\]|[_=-]{5,}")


def plain(text: str) -> str:
    """Markup goes: <b>, <br>, &nbsp;, ** ..."""
    text = re.sub("[\0\xad\u200b-\u200f\u2060\ufeff]", "", unescape(text))   # unseen
    if re.fullmatch(r"""(?s)\s*\[["'].*["']\]\s*""", text):   # a list as Python writes it
        text = "\n".join(re.split(r"""["'],\s*["']""", text.strip()[2:-2]))
    text = BREAK.sub("\n", text)
    return TAG.sub(lambda tag: "\n- " if tag[0].lower().startswith("<li") else "\n" if tag[1] else " ", text)


def one_line(text: str) -> str:
    """Without markup. Line breaks become blanks, or where they end a sentence (a blank line, a new item, or a
    capital behind a word that is not OPEN to more) a point; words cut in two are whole again."""
    text = plain(text).strip()
    lines = [line.strip(" \t|") for line in text.splitlines()]
    if len(lines) > 1:
        text = NONE_LINES.sub(lambda m: f"{m[1]} {', '.join(ITEM_LINE.findall(m[2]))}.", "\n".join(lines))
        text = re.sub(rf"(?i)(?<=[a-z])-\n+(?=[a-z])|({OPEN})\n+", lambda m: m[1] and m[1] + " " or "", text)
        item = r"|(?!(?:none|no|yes|absent|present)\b\W*(?:\n|$))\w"   # short lines without a point: items
        item = item if max(map(len, lines)) < 40 and not re.search("[.,;:]", text) else ""
        text = re.sub(rf"(?<=[\w)\]])\n(?=\n|[A-Z][a-z]|{PART_HEAD}|{BULLET}{item})", ". ", text)
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------------
# Sections. Reports are laid out as " HEADER: text", a blank before the header; names vary and are misspelt.
# Rules from MIMIC-CXR's section parser (MIT-LCP/mimic-cxr), described and written anew.

KNOWN = (r"END OF IMPRESSION|ACCESSION NUMBER|(?:CLINICAL |PATIENT )?(?:INDICATIONS?|HISTORY|INFORMATION)"
         r"|COMPARISONS?|TECHNIQUES?|PROCEDURE"
         r"|(?:REASON FOR (?:THE )?)?(?:EXAM(?:INATION)?|STUDY)|FINDINGS?(?: ?(?:AND|/|&) ?IMPRESSIONS?)?"
         r"|OBSERVATIONS?|IMPRESSIONS?|IMP|CONCLUSIONS?|OPINION|ADDENDUM|WET READ"
         r"|RECOMMENDATION(?:S|\(S\))?|NOTIFICATION"
         r"|REPORT|(?<!CRITICAL )RESULTS?|SUMMARY|INTERPRETATION"
         r"|(?:ELECTRONICALLY )?(?:SIGNED|DICTATED|REPORTED|INTERPRETED) BY|ATTESTATION")
PARTS = (r"(?:LUNG|PLEURA|HEART|CARDI|MEDIASTIN|BON[EY]|OSSEOUS|SOFT|LINE|TUBE|DEVICE|AIRWAY|HIL|DIAPHRAGM"
         r"|AORTA|OTHER)")
VIEW = (r"(?:PA|AP|FRONTAL|LATERAL|PORTABLE|UPRIGHT|SUPINE|SINGLE|ONE|TWO|[12]|AND|VIEWS?|FILMS?|X-?RAYS?"
        r"|XR|RADIOGRAPHS?)")
NOTE = r"(?: \([^()\n]{0,40}\)(?= ?[:：]))?"   # "IMPRESSION (final):"
# At the start of a line any capitals (but not "LUNGS:", a part of the findings); a usual name alone on its
# line, anywhere in capitals, as the first words of a sentence ("Impression- Edema"), behind a word with a
# capital ("cough Findings:"), or in capitals before words that are none ("FINDINGS Heart normal"); and what
# was looked at, in capitals, which `sections` takes for one behind an indication only ("PORTABLE CHEST: Small
# effusion").
HEADER = re.compile(
    rf"(?:^|\n) ?(?!{PARTS})([A-Z][A-Z ()/,-]*):(?=\s|$)|(?:^|\n)[ =*_\[-]*((?i:{KNOWN}))[ =*_\]:-]*(?=\n)"
    rf"|\b({KNOWN}){NOTE} ?[:：]"
    rf"|(?:^|(?<=\n)|(?<=[.!?:;]\s))\s{{0,20}}((?i:{KNOWN})){NOTE} ?(?::|;| [-–—=](?= ))"
    r"|(?:^|(?<=\n)|(?<=[.!?:;]\s))((?i:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?))-(?= )"
    rf"|\b\w[\w.)]{{0,40}}[ \t|]+(?=[A-Z][a-z])((?i:{KNOWN})):"
    r"|(?:^|\n ?|(?<=\. ))(FINDINGS|IMPRESSION|ADDENDUM)(?= {1,2}[A-Z]?[a-z])"
    rf"|(?<=[.!?] )(?P<view>(?:{VIEW}[ ,]+)*CHEST(?:,? {VIEW})*):(?=\s+[A-Z][a-z])")
MISSPELT = re.compile(r"\b([A-Z]{6,15}|[A-Z][a-z]{5,14}):")   # "FINDNGS:"
USUAL = ("FINDINGS", "IMPRESSION", "INDICATION", "CONCLUSION", "RECOMMENDATION")
SECTION_NAMES = (  # the first pattern that the lower-cased header matches in full names the section
    ("indication", r"reason for (the )?(exam(ination)?|study)"),
    ("history", r"clinical (history|information|data|details)|patient history|pfi"),
    ("impression", r"conclusions?|opinion|imp|summary|assessment|i ?m?p\w*s\w*n\w?"),
    ("findings", r"fin\w*s|finding|observations?|chest, two views|report|results?|interpretation"),
    ("examination", r"exam"),
    ("procedure", r"procedure comments?"),
    ("recommendations", r"recommendation(s|\(s\))?"),
)
SECTION_WORDS = ("impression", "findings", "history", "comparison", "addendum", "indication", "examination",
                 "technique")
BESIDE = {"indication", "history", "comparison", "examination", "technique", "procedure", "recommendations",
          "notification", "summary"}
CHEST_VIEW = re.compile(cues(r"""
    chest|portable|pa and lat|lat(?:eral)? and pa|(?:two|one|frontal|pa|ap|lateral) views?|frontal and
    frontal (?:semi-)?upright|bone window|ribs"""))
# What is about the report; and what a header has to hold to end the findings or the impression
ABOUT = re.compile(r"communicat|discuss|notif|^end of|accession|dictat|electronic|attending"
                   r"|(?:sign|report|interpret)ed by|attest")
ENDS = re.compile("|".join(BESIDE) + "|addendum|wet read|exam")
# How a reading begins that has no header: "INDICATION: Cough.\nThe lungs are clear."
READING = (r"(?=[A-Z])(?:(?:The |Both |Clear |Normal )?"
           r"(?:[Ll]ungs?\b(?! (?:canc|transpl|nodul|mass|resec|biop))"
           r"|[Hh]eart (?:size|is|not|and (?!lung tr))"
           r"|[Cc]ardi(?:ac (?:si|co)|ome)|[Mm]ediastin(?!al (?:mass|\w*aden|lymph))|[Tt]rachea)"
           r"|There (?:is|are|has|have) (?:(?:no|an?)(?! (?:prior|previous|known|compar|relevant|history"
           r"|concern|question))|been|mild|moderate|small|left|right)\b"
           r"|No (?:acute (?!dist)|focal (?!def)|evidence of (?!trauma|tb\b|TB\b)|pleural|pneumo|infiltr"
           r"|active|consolid|effusion))")
# The end of a report that speaks of no film, from the start of a sentence on
SIGNED = re.compile(
    r"(?is)(?:^|\n|(?<=[.!:] ))\s{0,20}(?:(?:this document )?(?:has been )?electronically signed"
    r"|report status|thank you for|i,? (?:dr\.? [^,\n]{1,40}, )?(?:have )?(?:personally )?(?:reviewed|attest)"
    r"|(?:dictated|transcribed|typed|reported) (?:by|on|at)\b|(?:radiologist|dictated|transcribed|typed)\s*:"
    r"|dr\.? [\w\s.,]{0,60}\s(?:\(?radiolog|consultant|m\.?d\b)|consultant radiologist|final report\s*$"
    r"|(?:(?:these|the|critical) )?(?:findings|results?) (?:(?:were|was|have been) )?(?:called|communicated"
    r"|discussed|conveyed|relayed|telephoned)\b|d/w |discussed with dr"
    r"|dr\.? \S+ (?:was|has been) (?:paged|notified|informed|called)).*")
OF_THE_FILM = re.compile("|".join(map(cues, (*FINDINGS.values(), *ORGANS.values(), r"""
    lungs?|heart|tip|normal\b|clear\b|no \w+|acute\b|abnormal|disease\b|hil(?:ar|um|a)\b|ribs?\b|aort|bon[ey]
    osse|trache|diaphragm"""))))
# What was taken, and when: "PORTABLE CHEST, 08:10 HOURS:", "Two views of the chest."
TITLE = re.compile(
    r"(?i)\A(?=[^\n.:]*\b(?:chest|cxr|views?|radiographs?|x-?rays?|films?)\b)\W*"
    rf"(?:(?:(?:final report|chest|cxr|port|{VIEW}|\dv|radiography|digital|semi|erect|at|of|the|on|hrs?|hours"
    r"|[ap]m|(?![12]\b(?![:/]\d))\d+(?:[:/]\d+)*|exam(?:ination)?|study|performed|obtained|was|were|is|_+)\b"
    r"|[ap]\.m\.)[ ,()&-]*)+(?:[.:\n](?!\d)\s*|$)")


def unsigned(text: str) -> str:
    """Without a signature or the like at its end, unless that speaks of the film, or is all that there is"""
    signed = SIGNED.search(text)
    if not signed or OF_THE_FILM.search(signed[0].lower()):
        return text
    kept = text[: signed.start()]
    return kept if worded(kept) else text


def unheaded(name: str, body: str, before: bool) -> list[str]:
    """A section beside the reading -> its own text, and the reading without a header that follows it, if any:
    behind a blank line, or from a line on that begins as readings do; behind a comparison or a technique what
    follows its first line, or its first sentence where there is but one line. `before` an impression only
    what is sure: behind a blank line, and as readings begin."""
    if before:
        return re.split(rf"\n\n *(?={READING})", re.sub(r"\n\s*\n", "\n\n", body), maxsplit=1)
    parts = re.split(r"\n ?\n", body, maxsplit=1)
    if name in BESIDE and (len(parts) == 1 or not parts[1].strip()):
        line = r"\n" if "\n" in body.strip() else r"(?<=\.)"
        parts = re.split(rf"{line} ?(?={READING})", body, maxsplit=1)
    if len(parts) == 1 and name in ("comparison", "technique"):
        line = r"\n" if "\n" in body.strip() else " "
        parts = re.split(rf"(?<=\.)(?<![ap]\.m\.) ?{line}(?=[A-Z])", body, maxsplit=1)
    return parts


def section_name(header: str, within: str = "") -> str:
    """A header as it stands in a report -> the section's usual name, lower case; its misspelling counts.

    Within findings or impression "" for what is a part of them ("RIBS:", "ADDITIONAL FINDINGS:").
    """
    name = " ".join(header.lower().split()).removeprefix("final report ")
    for known, pattern in SECTION_NAMES:
        if re.fullmatch(pattern, name):
            return known
    if ABOUT.search(name):
        return "notification"
    part = within in ("findings", "impression") and not ENDS.search(name)
    part = part and not (within == "findings" and "impression" in name)
    held = [word for word in SECTION_WORDS if word in name and not part]
    if held or (held := get_close_matches(name, SECTION_WORDS, 1, 0.82)):
        return held[0]
    return "" if part else "findings" if CHEST_VIEW.search(name) else name


def spelt(header: re.Match) -> str:
    """A match of MISSPELT, as the usual name that it nearly is, or as it is"""
    near = get_close_matches(header[1].upper(), USUAL, 1, 0.87)   # "Compression:" is at 0.86 of IMPRESSION
    return f"{near[0] if header[1].isupper() else near[0].capitalize()}:" if near else header[0]


def sections(text: str) -> dict[str, str]:
    """Report -> {section name: its text on one line}; of two sections of one name the last stays.

    Text before the first header is "preamble", a text without headers "full report". A header of no usual
    name stays in its section's text ("NG TUBE: in place"). Where there are headers, but none of findings,
    what follows the section before the impression without a header is "findings"; where there is no
    impression either, what follows the last section is "last_paragraph".
    """
    text = MISSPELT.sub(spelt, "\n".join(plain(text).splitlines()))
    cased = text.upper() if text.islower() and text.isascii() else text
    header = HEADER.search(cased)
    parts = [("preamble", text[: header.start(header.lastindex)])] if header else [("full report", text)]
    while header:
        words, start = header[header.lastindex], header.start(header.lastindex)
        name = section_name(words, within=parts[-1][0])
        following = HEADER.search(cased, header.end())
        end = following.start(following.lastindex) if following else len(text)
        if words.lower() == "summary" and (
                re.match(r"\s*\d", text[header.end():])
                or any(part == "impression" and worded(body) for part, body in parts)):
            name = "summary"   # CheXpert Plus's, of its own: "SUMMARY: 2-ABNORMAL"
        if header["view"] and (parts[-1][0] not in ("indication", "history")
                               or {"findings", "impression"} & {part for part, _ in parts}):
            name = ""   # behind an indication it begins what was read, elsewhere it is a part of that
        if name:
            usual = name in BESIDE or name in SECTION_WORDS or name == "wet read"
            parts.append((name, text[header.end() if usual else start: end]))
        else:
            name, body = parts.pop()
            parts.append((name, body + text[start: end]))
        header = following
    parts = [(name, body) for name, body in parts if body.strip() or name not in ("impression", "findings")]
    names = [name for name, _ in parts]
    if len(parts) > 1 and "findings" not in names:
        before = "impression" in names
        while not before and len(parts) > 2 and parts[-1][0] in ("notification", "summary"):
            parts.pop()
        end = names.index("impression") if before else len(parts)
        name, body = parts[end - 1]
        if name in BESIDE or not before:
            own, *rest = unheaded(name, body, before)
            kind = "findings" if before else "last_paragraph"
            parts[end - 1: end] = [(name, own), *((kind, text) for text in rest if text.strip())]
    return {name: one_line(unsigned(body)) for name, body in parts}
