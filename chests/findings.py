"""The 14 CheXpert labels and the words that mention them (Irvin et al., AAAI 2019), one alternative a line.

A *finding* is a disease word, present unless the clause says otherwise. An *organ* ("heart size") says
nothing until the clause judges it; one never judged is no mention. (The original calls it positive: "the
heart and lungs are seen" would be cardiomegaly.) "Other" findings only speak against "No Finding".
"""

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Lung Opacity", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)

FINDINGS = {
    "Enlarged Cardiomediastinum": r"""
        widen(?:ed|ing)(?: of)?(?: the)? (?:superior )?mediastin
        mediastinal (?:widening|enlargement)""",
    "Cardiomegaly": r"cardiomegaly|(?:cardiac|heart) enlargement|enlargement of the (?:heart|cardiac)",
    "Lung Lesion": r"""
        mass(?!ive|achu)|lump(?!ect)|cavitary lesion|(?:adeno)?carcinoma|neoplas|tumou?r
        (?<!\bcalcified )(?:micro)?nodul(?:es?\b|ar (?:densit|opaci))""",
    "Lung Opacity": r"""
        opaci|decreased translucency|increased densit|air-? ?space (?:disease|process)|infiltrat
        interstitial (?:marking|pattern|lung|disease)|reticular (?:pattern|marking)|reticulation
        parenchymal scar|(?<!pleural )(?<!parenchymal )scar(?:s|red|ring)?\b
        peribronchial thickening|(?<!chest )wall thickening""",
    "Edema": r"""
        o?edema|(?:congestive )?(?:heart|cardiac) failure|chf|(?:vascular|pulmonary|venous) congestion
        indistinctness|vascular prominence""",
    "Consolidation": r"consolidat",
    "Pneumonia": r"""
        (?:broncho)?pneumonia|pna\b|infectious
        (?<!prior )(?<!previous )(?<!old )(?<!granulomatous )infection""",
    "Atelectasis": r"atelecta|(?<!vertebral )(?<!body )collapse(?!d? vertebra| of (?:the )?[ctl]\d)",
    "Pneumothorax": r"(?:hydro|ha?emo)?pneumothora|ptx\b|pleural air\b",
    "Pleural Effusion": r"""
        pleural (?:fluid|(?:and|or) pericardial effusion)|(?<!pericardial )effusion
        h(?:ydropneu|a?e)mothora""",
    "Pleural Other": r"""
        pleural thickening|fibrosis|fibrothorax|pleural[ -](?:parenchymal )?scar|pleuro-?\w+ scar""",
    "Fracture": r"(?<!\blead |\bwire |\bline )(?<!device )(?<!hardware |catheter )"
                r"fractur(?!ed (?:(?!with |and )\w+ ){0,2}(?:wire|lead(?! to)))",
    "Support Devices": r"""
        pacer|defib|tubes?\b|(?:ett|ngt|ogt|cv[cl])\b|swan-ganz|\w*catheter(?!iz)|pacemaker
        a?icd\b|picc|lines?\b|cannula|drain\b|valves?\b|hardware|arthroplast|screw|coils?\b
        \w*port-?a-?cath|(?:medi|chemo|infusa|power)port
        (?:right|left)(?:-sided)?(?: upper)?(?: chest| ij| jugular| subclavian)?(?: wall)? ports?\b
        chest wall ports?\b
        (?<!end )(?<!end-)plates?\b(?!-| ?like)|(?<!nipple )marker|device|apparatus|equipment""",
    "Other": r"""
        emphysema|blunt|density|elevation|eventration|scoliosis|degenera|calcifi|hyperinflat|hyperexpan
        bronchospasm|asthma|hernia|copd|plaque|osteophyt|aortic disease|bronchiolitis|airways disease
        thickening|cephalization|aspiration|bullae|contusion|atherosclero|osteopenia|metasta|granuloma
        pneumomediastinum|pneumoperitoneum|osteodystrophy|cuffing|irregular lucency|inflam|fissure
        hypertension|prominen|kyphosis|bullet|reticula|thoracentesis|bronchitis|volume loss|deformity
        bronchiectas|tubercul|abscess|aneurysm|\w*adenopathy|honeycomb|lytic|free (?:\w+ )?air|dislocat
        spondylo|cavitar|cavitat|(?:elevated|raised) (?:\w+ )?(?:hemi)?diaphragm
        (?:hemi)?diaphragm (?:is |remains )?(?:\w+ly )?(?:elevated|raised)
        hemorrhage|hematoma|radiopaque|aerophagia|arthropathy|tracheostomy""",
}
ORGANS = {
    "Enlarged Cardiomediastinum": r"""
        mediastinum|cardiomediastin(?:um|al)|(?<!diaphragmatic )contour
        mediastinal (?:configuration|silhouette)|pericardial silhouette""",
    "Cardiomegaly": r"""
        heart(?! failure| disease| rate| enlargement| border)|cardiopericardial silhouette
        cardiac(?: (?:size|shadow|contour|silhouette|and (?:mediastinal|hilar))|, mediastinal)""",
}
