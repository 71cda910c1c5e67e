"""labels.py, sentence by sentence: fifty of each kind that rules stumble over, written for these tests.

A line is a sentence and what CheXpert's rules make of it: + present, - absent, ? uncertain, ~ not mentioned,
and a short name.
"""
from math import isnan

import pytest

from chests.labels import LABELS, label

SHORT = {"ecm": "Enlarged Cardiomediastinum", "heart": "Cardiomegaly", "lesion": "Lung Lesion",
         "opacity": "Lung Opacity", "edema": "Edema", "cons": "Consolidation", "pna": "Pneumonia",
         "atel": "Atelectasis", "ptx": "Pneumothorax", "eff": "Pleural Effusion", "pleura": "Pleural Other",
         "fx": "Fracture", "dev": "Support Devices", "normal": "No Finding"}
VALUE = {"+": 1, "-": 0, "?": -1}

# A denied list is closed by its "or": what follows the comma is there.
NO_A_OR_B_BUT_C = """
No pneumothorax or pneumonia, small right pleural effusion. | -ptx -pna +eff
No focal consolidation or pneumothorax, trace bilateral effusions. | -cons -ptx +eff
No effusion or edema, stable mild cardiomegaly. | -eff -edema +heart
No acute fracture or pneumothorax, minimal left basilar atelectasis. | -fx -ptx +atel
No pulmonary edema or effusion, moderate cardiomegaly. | -edema -eff +heart
No evidence of pneumonia or effusion, mild bibasilar atelectasis. | -pna -eff +atel
Without pneumothorax or effusion, small nodule in the right apex. | -ptx -eff +lesion
No pneumothorax, pneumonia, or effusion, tiny left lower lobe nodule. | -ptx -pna -eff +lesion
There is no consolidation or effusion, chronic right rib fractures. | -cons -eff +fx
No pneumothorax or large effusion, low lung volumes with bibasilar atelectasis. | -ptx -eff +atel
No focal airspace disease or effusion, right PICC tip in the SVC. | -opacity -eff +dev
No pneumothorax or consolidation, right chest tube in place. | -ptx -cons +dev
No effusion or pneumothorax and small right lower lobe opacity. | -eff -ptx +opacity
No edema or pneumonia and persistent left retrocardiac atelectasis. | -edema -pna +atel
No new consolidation or pneumothorax, unchanged small left effusion. | ?cons ?ptx +eff
No definite pneumothorax or rib fracture, left lower lobe consolidation. | -ptx -fx +cons
No pneumothorax or edema, bilateral pleural thickening. | -ptx -edema +pleura
No evidence of effusion or pneumothorax, left basilar scarring. | -eff -ptx +opacity
No pleural effusion or pneumothorax, mildly enlarged heart. | -eff -ptx +heart
No pneumothorax or effusion, linear atelectasis at the left base. | -ptx -eff +atel
No consolidation or edema, large right pleural effusion. | -cons -edema +eff
No pneumonia or edema, patchy opacity at the right base. | -pna -edema +opacity
No pneumothorax, effusion or consolidation, subsegmental atelectasis in the lingula. | -ptx -eff -cons +atel
No pneumothorax or consolidation, small effusion on the left, stable. | -ptx -cons +eff
No consolidation or pneumothorax, moderate effusion with compressive atelectasis. | -cons -ptx +eff +atel
No effusion or edema, possible left lower lobe pneumonia. | -eff -edema ?pna
No fracture or pneumothorax, probable small left effusion. | -fx -ptx ?eff
No effusion or consolidation, old healed left rib fractures. | -eff -cons +fx
No pneumonia or pneumothorax, multiple pulmonary nodules. | -pna -ptx +lesion
No edema or consolidation, tortuous aorta, small left effusion. | -edema -cons +eff
No pneumothorax or pneumonia, increasing left pleural effusion. | -ptx -pna +eff
No consolidation or effusion, residual small right apical pneumothorax. | -cons -eff +ptx
No pneumothorax or effusion, improving left lower lobe consolidation. | -ptx -eff +cons
No acute consolidation or edema, worsening right pleural effusion. | -cons -edema +eff
No pneumothorax or effusion, left-sided pacemaker with leads in the right ventricle. | -ptx -eff +dev
No evidence of pneumothorax or hemothorax, right sixth rib fracture. | -ptx -eff +fx
No consolidation, edema, or pneumothorax, tiny effusions. | -cons -edema -ptx +eff
No pneumothorax nor effusion, mild cardiomegaly. | -ptx -eff +heart
No pneumothorax or effusion, moderately enlarged cardiac silhouette. | -ptx -eff +heart
Lungs without consolidation or edema, small bilateral effusions. | -cons -edema +eff
No large effusion or pneumothorax, streaky left basilar atelectasis. | -eff -ptx +atel
No pneumothorax or focal opacity, biapical pleural thickening. | -ptx -opacity +pleura
No edema, consolidation or pneumothorax, right pleural effusion. | -edema -cons -ptx +eff
No pneumothorax or consolidation; small effusion. | -ptx -cons +eff
No pneumothorax or consolidation but a small effusion remains. | -ptx -cons +eff
No pneumothorax or effusion - mild edema. | -ptx -eff +edema
No pneumothorax, small left effusion or edema. | -ptx -eff -edema
No pneumothorax, small effusion, or consolidation. | -ptx -eff -cons
No pneumothorax or effusion, small nodule or granuloma at the right apex. | -ptx -eff ?lesion
No pneumothorax and mild edema with atelectasis or scarring at the bases. | -ptx +edema ?atel ?opacity
"""

# Forms to fill in: the answer stands behind the finding.
STRUCTURED = r"""
Pneumothorax: None. | -ptx
Pneumothorax: No. | -ptx
Pneumothorax - none. | -ptx
Pneumothorax – none. | -ptx
Pneumothorax — none | -ptx
Pneumothorax (-) | -ptx
Pneumothorax (−), effusion (+). | -ptx +eff
PNEUMOTHORAX: NEGATIVE. | -ptx
Pneumothorax: absent | -ptx
Pneumothorax: Not seen. | -ptx
Pneumothorax: none seen. Pleural effusion: small, left. | -ptx +eff
Pleural effusion: None identified. | -eff
Pleural effusions: none on either side. | -eff
Effusion: Absent. Consolidation: Present. | -eff +cons
Effusion : none ; consolidation : none | -eff -cons
Consolidation: no; edema: no; fracture: yes, left sixth rib. | -cons -edema +fx
Consolidation: No focal consolidation. | -cons
Edema: No evidence of edema. | -edema
Pneumonia: There is no evidence of pneumonia. | -pna
Cardiomegaly: none. | -heart
Cardiomegaly: No | -heart
Heart enlargement: absent. | -heart
Fractures: None. | -fx
Fracture - no. Dislocation - no. | -fx
Lines and tubes: None. | -dev
Support devices: none. | -dev
Support devices:\n\nNone.\n\nHeart: normal. | -dev -heart
Lines/tubes: ET tube 4 cm above the carina. Pneumothorax: none. | +dev -ptx
Pneumothorax: none\nEffusion: none\nEdema: mild | -ptx -eff +edema
Pneumothorax: no Effusion: no Atelectasis: bibasilar | -ptx -eff +atel
Pleural effusion/pneumothorax: None. | -eff -ptx
Effusion, pneumothorax: none. | -eff -ptx
Effusion or pneumothorax: none. | -eff -ptx
Small left effusion, pneumothorax: none. | +eff -ptx
Effusion: small left, pneumothorax: none. | +eff -ptx
Effusion: none, pneumothorax: small apical. | -eff +ptx
Pneumothorax? No. Effusion? Small. | -ptx +eff
Pneumothorax = none, consolidation = none. | -ptx -cons
Pneumothorax (none), effusion (none), nodule (8 mm, right apex). | -ptx -eff +lesion
Pneumothorax [no], fracture [no]. | -ptx -fx
Nodules or masses: none. | -lesion
Pulmonary nodules: negative. Atelectasis: left base. | -lesion +atel
Atelectasis: nil. Effusion: nil. | -atel -eff
Pneumothorax: cannot be excluded. Effusion: none. | ?ptx -eff
Pneumonia: unlikely. Edema: none. | ?pna -edema
Consolidation: possible, left base. Pneumothorax: none. | ?cons -ptx
Effusion: resolved. Pneumothorax: resolved. | -eff -ptx
Effusion: no change. Pneumothorax: no. | +eff -ptx
Lungs: Clear. Pleura: No effusion or pneumothorax. Heart: Normal in size. | -eff -ptx -heart
Heart: Enlarged. Mediastinum: Normal. Pleural thickening: none. Bones: No fracture. | +heart -ecm -pleura -fx
"""

# Of two that stand against each other neither is sure.
VERSUS = """
Atelectasis vs. consolidation at the left base. | ?atel ?cons
Left basilar atelectasis vs. pneumonia. | ?atel ?pna
Right lower lobe pneumonia vs. aspiration. | ?pna
Aspiration vs. pneumonia in the right lower lobe. | ?pna
Small pleural effusion vs. pleural thickening. | ?eff ?pleura
Pleural thickening vs. small effusion on the right. | ?pleura ?eff
Skin fold vs. pneumothorax at the left apex. | ?ptx
Pneumothorax vs. skin fold. | ?ptx
Edema vs. infection. | ?edema ?pna
Mild interstitial edema vs. atypical infection. | ?edema ?pna
Nodule vs. nipple shadow. | ?lesion
Nipple shadow vs. nodule at the right base. | ?lesion
Vascular crowding vs. mild edema. | ?edema
Scar vs. atelectasis in the lingula. | ?opacity ?atel
Linear scarring vs. subsegmental atelectasis. | ?opacity ?atel
Atelectasis versus scarring at the bases. | ?atel ?opacity
Atelectasis, versus early pneumonia. | ?atel ?pna
Atelectasis vs early consolidation. | ?atel ?cons
Atelectasis VS. PNEUMONIA. | ?atel ?pna
Atelectasis v. pneumonia. | ?atel ?pna
Atelectasis v/s consolidation. | ?atel ?cons
Atelectasis v.s. consolidation. | ?atel ?cons
Atelectasis vs.pneumonia. | ?atel ?pna
Atelectasis vs. aspiration vs. pneumonia. | ?atel ?pna
Lung mass vs. round pneumonia. | ?lesion ?pna
Round pneumonia vs. mass in the left upper lobe. | ?pna ?lesion
Cardiomegaly vs. pericardial effusion. | ?heart
Old rib fracture vs. artifact. | ?fx
Overlying line vs. rib fracture on the left. | ?fx
Left lower lobe collapse vs. consolidation. | ?atel ?cons
Consolidation vs. collapse of the left lower lobe. | ?cons ?atel
Infiltrate vs. atelectasis in the left lung base. | ?opacity ?atel
Left basilar opacity, atelectasis vs. pneumonia. | +opacity ?atel ?pna
Opacity at the right base is atelectasis vs. pneumonia. | +opacity ?atel ?pna
Opacities representing edema vs. infection. | +opacity ?edema ?pna
Right basilar opacity with atelectasis vs. pneumonia. | +opacity ?atel ?pna
No pneumothorax, atelectasis vs. scar at the left base. | -ptx ?atel ?opacity
No effusion. Atelectasis vs. infiltrate at the right base. | -eff ?atel ?opacity
Small left effusion, atelectasis vs. consolidation. | +eff ?atel ?cons
Atelectasis vs. pneumonia, small left effusion. | ?atel ?pna +eff
Atelectasis vs. pneumonia, no effusion. | ?atel ?pna -eff
Atelectasis vs. pneumonia. No pneumothorax. Mild cardiomegaly. | ?atel ?pna -ptx +heart
Small left effusion vs. chronic pleural thickening, no pneumothorax. | ?eff ?pleura -ptx
Differential includes edema vs. infection. | ?edema ?pna
Findings may reflect edema vs. infection. | ?edema ?pna
Retrocardiac atelectasis vs. developing consolidation, unchanged. | ?atel ?cons
Trace effusion vs. pleural scar at the left costophrenic angle. | ?eff ?pleura
Stable granuloma vs. calcified vessel; no pneumonia. | -pna
Subsegmental atelectasis in the left mid lung zone vs. scarring. | ?atel ?opacity
Pleural effusion vs. elevated hemidiaphragm on the right. | ?eff
"""

# Typeset apostrophes and dashes are the typewriter's.
APOSTROPHES = """
Pneumonia can’t be excluded. | ?pna
A small effusion can’t be excluded. | ?eff
Can’t exclude a small pneumothorax. | ?ptx
We can’t exclude early edema. | ?edema
A nodule couldn’t be excluded at the right apex. | ?lesion
Rib fracture can‘t be excluded. | ?fx
Consolidation canʼt be ruled out. | ?cons
Can´t rule out pneumonia. | ?pna
Can`t exclude atelectasis. | ?atel
An underlying mass can’t be entirely excluded. | ?lesion
Superimposed infection can’t be completely excluded. | ?pna
There isn’t a pneumothorax. | -ptx
There isn’t any effusion. | -eff
There aren’t effusions. | -eff
There isn't any consolidation. | -cons
Effusion isn’t seen. | -eff
Pneumothorax isn’t identified. | -ptx
The previously noted nodule isn’t visualized. | -lesion
Effusions aren’t present. | -eff
Fractures weren’t seen. | -fx
Pneumothorax wasn’t demonstrated. | -ptx
The lungs don’t show consolidation. | -cons
This film doesn’t show pneumonia. | -pna
I don’t see a pneumothorax. | -ptx
We didn’t identify a fracture. | -fx
The exam doesn’t demonstrate edema. | -edema
The heart isn’t enlarged. | -heart
The heart isn't enlarged. | -heart
The cardiac silhouette isn’t enlarged. | -heart
The mediastinum isn’t widened. | -ecm
The effusion hasn’t changed. | +eff
The effusion hasn’t significantly changed. | +eff
The left pneumothorax hasn’t resolved. | +ptx
Consolidation hasn’t cleared. | +cons
The chest tube hasn’t been removed. | +dev
The opacity hasn’t completely resolved. | +opacity
Right-sided pneumothorax can’t be excluded; no effusion. | ?ptx -eff
No pneumothorax. Small effusion can’t be excluded. | -ptx ?eff
Can’t exclude a small effusion. No edema. | ?eff -edema
The patient’s heart is enlarged. | +heart
The patient’s effusion is small. | +eff
Today’s film shows no pneumothorax. | -ptx
Yesterday’s pneumothorax has resolved. | -ptx
Kerley’s lines and mild edema. | +edema
Hamman’s sign absent, no pneumothorax. | -ptx
Small effusion – unchanged. | +eff
Large mass — biopsy advised. | +lesion
Right‑sided effusion. | +eff
Left‐sided chest tube. | +dev
Effusion can’t be excluded – correlate clinically. | ?eff
"""

# What has not changed is still there.
UNCHANGED = """
Not significantly changed left pleural effusion. | +eff
Not significantly changed moderate right effusion. | +eff
Not substantially changed bibasilar atelectasis. | +atel
Not appreciably changed cardiomegaly. | +heart
Not much changed right lower lobe consolidation. | +cons
Not markedly improved pulmonary edema. | +edema
Not significantly increased small effusions. | +eff
Not significantly improved left lower lobe pneumonia. | +pna
Not yet resolved right upper lobe pneumonia. | +pna
Not completely resolved left pneumothorax. | +ptx
Left effusion, not significantly changed. | +eff
Right pneumothorax, not significantly changed in size. | +ptx
The left effusion is not significantly changed. | +eff
The cardiomegaly has not changed. | +heart
The edema has not improved. | +edema
The consolidation has not progressed. | +cons
The pneumothorax has not resolved. | +ptx
The pneumothorax has not completely resolved. | +ptx
The infiltrate has not yet cleared. | +opacity
The tube has not been removed. | +dev
The effusion has only partially resolved. | +eff
Incompletely resolved left lower lobe pneumonia. | +pna
Partial resolution of the right effusion. | +eff
No resolution of the right lower lobe pneumonia. | +pna
No clearing of the consolidation. | +cons
Incomplete clearing of the edema. | +edema
No significant change in the left effusion. | +eff
No significant interval change in the small left pleural effusion. | +eff
No appreciable short interval change in right effusion. | +eff
No substantial change in moderate bilateral effusions. | +eff
No interval change in the pneumothorax. | +ptx
No change, small right pneumothorax. | +ptx
No change in cardiomegaly. | +heart
No increase in the left pneumothorax. | +ptx
No increase or decrease in the effusion. | +eff
No interval worsening of the edema. | +edema
No growth of the right upper lobe nodule. | +lesion
No significant interval growth of the nodule. | +lesion
No difference in the left basilar atelectasis. | +atel
No evidence of change in the right effusion. | +eff
No evidence of progression of the pneumonia. | +pna
No improvement in the left lower lobe consolidation. | +cons
Without significant change in bilateral effusions. | +eff
Without interval change in the rib fractures. | +fx
Without much change, the left effusion persists. | +eff
No significant change in effusion, no pneumothorax. | +eff -ptx
Not significantly changed effusion, no pneumothorax. | +eff -ptx
Not significantly changed effusion or atelectasis. | ?eff ?atel
No increased effusion. | -eff
No pneumothorax and no change in the effusion. | -ptx +eff
"""

# "Unlikely" doubts; "likely" alone affirms.
UNLIKELY = """
Pneumonia is unlikely. | ?pna
Effusion is unlikely. | ?eff
Edema unlikely. | ?edema
Pneumothorax is felt to be unlikely. | ?ptx
Pneumothorax is considered unlikely. | ?ptx
Pneumonia seems unlikely. | ?pna
Pneumonia appears unlikely. | ?pna
Pneumonia is very unlikely. | ?pna
Pneumonia is highly unlikely. | ?pna
Acute fracture is thought unlikely. | ?fx
A mass is unlikely. | ?lesion
Superimposed infection is unlikely. | ?pna
Consolidation would be unlikely. | ?cons
Pneumonia is less likely. | ?pna
Aspiration or pneumonia is less likely. | ?pna
Edema is less likely. | ?edema
Pneumonia is not likely. | ?pna
Pneumonia is not very likely. | ?pna
Pneumonia is doubtful. | ?pna
Doubt pneumonia. | ?pna
Doubtful small effusion. | ?eff
Unlikely pneumonia. | ?pna
Unlikely to represent pneumonia. | ?pna
Unlikely to be consolidation. | ?cons
Less likely pneumonia. | ?pna
Atelectasis, less likely pneumonia. | +atel ?pna
Left basilar atelectasis, less likely consolidation. | +atel ?cons
Likely atelectasis, less likely pneumonia. | +atel ?pna
Left basilar opacity unlikely to represent pneumonia. | +opacity ?pna
Opacity is unlikely to reflect pneumonia. | +opacity ?pna
Small effusion, unlikely to be infected. | +eff
Small effusion and atelectasis, pneumonia is unlikely. | +eff +atel ?pna
No consolidation, pneumonia is unlikely. | -cons ?pna
No effusion. Pneumonia unlikely. | -eff ?pna
Pneumonia is unlikely, no effusion. | ?pna -eff
Pneumonia is unlikely; small effusion. | ?pna +eff
Pneumonia unlikely. Mild cardiomegaly. | ?pna +heart
Pneumothorax is unlikely but a small effusion is present. | ?ptx +eff
Fracture unlikely, small left effusion. | ?fx +eff
Pneumonia and edema are unlikely. | ?pna ?edema
A significant effusion is unlikely. | ?eff
Residual pneumothorax is unlikely. | ?ptx
An acute rib fracture is improbable. | ?fx
Likely pneumonia. | +pna
Most likely atelectasis. | +atel
Likely small bilateral effusions. | +eff
More likely atelectasis than scar. | +atel
Pneumonia is likely. | +pna
Heart failure is unlikely. | ?edema ?heart
Rib fracture is present and unlikely to be acute. | +fx
"""

# A point ends a sentence whatever stands behind it; between digits it is a decimal point.
NO_SPACE = r"""
No pneumothorax.Small left effusion. | -ptx +eff
No effusion.Mild cardiomegaly. | -eff +heart
No focal consolidation.Mild edema. | -cons +edema
No pneumonia.Right PICC in place. | -pna +dev
No pneumothorax.2. Small effusion. | -ptx +eff
No consolidation.4 mm nodule in the left apex. | -cons +lesion
No effusion.12 mm nodule on the right. | -eff +lesion
No pneumothorax.3.5 cm mass in the left upper lobe. | -ptx +lesion
No pneumothorax.There is a 1.5 cm nodule. | -ptx +lesion
No effusion.1.2 cm nodule. | -eff +lesion
1.No pneumothorax.2.Small effusion. | -ptx +eff
1.Small effusion.2.No pneumothorax. | +eff -ptx
1. No effusion 2. Mild edema. | -eff +edema
Small effusion.No pneumothorax. | +eff -ptx
Small effusion.No consolidation.No edema. | +eff -cons -edema
Heart is enlarged.No edema. | +heart -edema
Heart size is normal.Small effusion. | -heart +eff
Heart size is normal.Lungs are clear.Old rib fracture. | -heart +fx
Pneumonia cannot be excluded.No effusion. | ?pna -eff
Possible pneumonia.Small effusion. | ?pna +eff
No pneumothorax (supine).Left effusion. | -ptx +eff
No pneumothorax!Small effusion. | -ptx +eff
No pneumothorax..Small effusion. | -ptx +eff
No pneumothorax. Small effusion. | -ptx +eff
No pneumothorax.  Small effusion. | -ptx +eff
No pneumothorax .Small effusion. | -ptx +eff
No pneumothorax.\nSmall effusion. | -ptx +eff
No pneumothorax\n\nSmall effusion. | -ptx +eff
No pneumothorax,effusion,or edema. | -ptx -eff -edema
No pneumothorax,small effusion. | -ptx +eff
No pneumothorax;small effusion. | -ptx +eff
Pneumothorax:none.Effusion:small. | -ptx +eff
Effusion:none.Pneumothorax:none. | -eff -ptx
A 2.5 cm mass without effusion. | +lesion -eff
Tube 4.5 cm above the carina without pneumothorax. | +dev -ptx
The tube ends 3.2 cm above the carina.No pneumothorax. | +dev -ptx
Nodule of 0.8 cm.No effusion. | +lesion -eff
No nodule above 0.5 cm is seen. | -lesion
No effusion.6th rib fracture on the left. | -eff +fx
No edema.7 mm nodule.No fracture. | -edema +lesion -fx
Edema has resolved.Small effusions remain. | -edema +eff
Removal of the chest tube.No pneumothorax. | -dev -ptx
Effusion is unlikely.Mild cardiomegaly. | ?eff +heart
Lungs clear.Effusion not seen.Left pacemaker. | -eff +dev
No consolidation.Atelectasis vs.pneumonia at the base. | -cons ?atel ?pna
No pneumothorax.Consolidation in the left lower lobe. | -ptx +cons
NO PNEUMOTHORAX.SMALL LEFT EFFUSION. | -ptx +eff
No fracture.Degenerative changes.Pleural thickening. | -fx +pleura
Low volumes.Bibasilar atelectasis.No effusion. | +atel -eff
Compared with 1.2.2020.No pneumothorax.Small effusion. | -ptx +eff
"""

# And of each other kind a few: denials, abbreviations, forms, questions, what only sounds like a finding, and
# sentences that a line break cuts, or ends without a point.
OTHERS = r"""
Denies pneumonia. | -pna
Patient denies pneumonia or effusion. | -pna -eff
Denies fever but has pneumonia. | +pna
There is a lack of consolidation. | -cons
The film fails to demonstrate a pneumothorax. | -ptx
Pneumonia failed to resolve. | +pna
Nothing to suggest pneumonia. | -pna
We are unable to exclude a small effusion. | ?eff
Effusion not visible. | -eff
No PTX. PTX: neg. | -ptx
Small left PTX. | +ptx
Effusion - absent | -eff
Pneumothorax -ve | -ptx
Pneumothorax: N. Effusion: Y. | -ptx +eff
Pneumothorax = 0, effusion = 1 | -ptx +eff
Effusion: 0.5 cm. | +eff
Pneumothorax: false. Effusion: true. | -ptx +eff
Pneumothorax ... none. Effusion ... small. | -ptx +eff
Pneumothorax; none. | -ptx
Pneumothorax\tnone | -ptx
Pneumothorax -> no | -ptx
Pneumothorax: N/A | ?ptx
Effusion: not assessed. | ?eff
[ ] Pneumothorax [x] Effusion | -ptx +eff
[ ] Pneumothorax [ ] Effusion [X] Edema | -ptx -eff +edema
Pneumothorax: [ ] Effusion: [x] Edema: [ ] | -ptx +eff -edema
No evidence for pneumonia or effusion, nodule small. | -pna -eff +lesion
Effusion neg | -eff
Effusion, no. Edema "none". | -eff -edema
{"effusion": "no", "edema": "yes"} | -eff +edema
(+) effusion, (-) pneumothorax | +eff -ptx
Effusion: +/-, pneumothorax: maybe, edema: ? | ?eff ?ptx ?edema
Cant exclude pneumonia. Effusion isnt seen. | ?pna -eff
Age-indeterminate fracture, opacity of uncertain origin. | +fx +opacity
Fracture? | ?fx
? fracture | ?fx
Left base opacity (?atelectasis) and small effusion. | +opacity ?atel +eff
Is the heart enlarged? Pneumonia (?), left base. | ?heart ?pna
Edema? None. Effusion? Large. | -edema +eff
A fracture line is seen in the left sixth rib. | +fx ~dev
Pleural line at the left apex, Kerley B-lines. | ~dev
No mass effect. Body mass index 30. | ~lesion
Mass effect from a large mass. | +lesion
There is no evidence of\n\npneumothorax. | -ptx
No focal consolidation,\neffusion,\nor pneumothorax. | -cons -eff -ptx
Left lower lobe con-\nsolidation, no pneumo-\nthorax. | +cons -ptx
No pneumothorax\nSmall effusion | -ptx +eff
No effusion\r\n2. Edema | -eff +edema
No effusion\n* Edema | -eff +edema
No evidence of\nPneumothorax | -ptx
"""

KINDS = (NO_A_OR_B_BUT_C, STRUCTURED, VERSUS, APOSTROPHES, UNCHANGED, UNLIKELY, NO_SPACE)
LINES = [line.split(" | ") for kind in (*KINDS, OTHERS) for line in kind.strip().split("\n")]


def check(sentence: str, wanted: str) -> None:
    for escaped, letter in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
        sentence = sentence.replace(escaped, letter)
    said = dict(zip(LABELS, label(sentence), strict=True))
    for part in wanted.split():
        value = said[SHORT[part[1:]]]
        assert isnan(value) if part[0] == "~" else value == VALUE[part[0]], part


@pytest.mark.parametrize("sentence, wanted", LINES)
def test_sentence(sentence, wanted):
    """Each sentence says what a reader would say it does."""
    check(sentence, wanted)


def test_fifty_of_each_kind():
    """Every kind has fifty sentences, no two the same."""
    assert [len(kind.strip().split("\n")) for kind in KINDS] == [50] * len(KINDS)
    assert len({line for line, _ in LINES}) == len(LINES)


@pytest.mark.parametrize("text", ["", "...", "___", "XXXX.", "None.", "N/A", "nan", "See above.", "123", "?"])
def test_a_text_without_words_of_its_own_has_no_labels(text):
    """Blanks, de-identified words and references to elsewhere are no normal chest."""
    assert all(map(isnan, label(text)))
