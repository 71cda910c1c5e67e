"""labels.py, sentence by sentence, once more: how denied lists end, forms, change, doubt, devices. Lines as
in test_sentences.py, those of each kind followed by some that only look like it."""
import pytest
from test_sentences import check

# A denied list ends where an item says of itself that it is there; and lists that go on.
THEN_SOMETHING_NEW = r"""
No effusion or pneumothorax, ETT tip 3 cm above the carina. | -eff -ptx +dev
No pneumothorax, effusions are small. | -ptx +eff
No consolidation, pleural effusion is small. | -cons +eff
No acute cardiopulmonary process, old rib fractures. | +fx
No pneumothorax, enlarged heart. | -ptx +heart
No pneumothorax status post right chest tube placement. | -ptx +dev
No: pneumothorax, effusion, edema. Yes: cardiomegaly. | -ptx -eff -edema +heart
No consolidation in the right lung, patchy opacity in the left lung. | -cons +opacity
Status post thoracentesis, no pneumothorax, effusion is smaller. | -ptx +eff
Clear lungs, no pneumothorax, pacemaker. | -ptx +dev
No pneumothorax, pacemaker in place. | -ptx +dev
No pneumothorax, PICC in SVC. | -ptx +dev
No pneumothorax, chest tube in place. | -ptx +dev
No pneumothorax, lines unchanged. | -ptx +dev
No pneumothorax, support devices as before. | -ptx +dev
No pneumothorax, tubes and lines in place. | -ptx +dev
No pneumothorax, median sternotomy, valve replacement. | -ptx +dev
No pneumothorax, healing rib fractures. | -ptx +fx
No pneumothorax, multiple rib fractures. | -ptx +fx
No pneumothorax, the effusion is small. | -ptx +eff
No pneumothorax, hazy opacity at the base. | -ptx +opacity
No pneumothorax, patchy opacities at both bases. | -ptx +opacity
No pneumothorax, decreased effusion. | -ptx +eff
No pneumothorax, slightly larger effusion. | -ptx +eff
No pneumothorax, subtle nodule. | -ptx +lesion
No pneumothorax, severe cardiomegaly. | -ptx +heart
No pneumothorax, marked cardiomegaly. | -ptx +heart
No pneumothorax, borderline cardiomegaly. | -ptx ?heart
No pneumothorax, extensive consolidation. | -ptx +cons
No pneumothorax, new consolidation. | -ptx +cons
No pneumothorax, dense consolidation. | -ptx +cons
No pneumothorax, diffuse edema. | -ptx +edema
No pneumothorax, loculated effusion. | -ptx +eff
No pneumothorax, layering effusion. | -ptx +eff
No pneumothorax, known mass in the right upper lobe. | -ptx +lesion
No pneumothorax, ET tube 3 cm above the carina. | -ptx +dev
Negative for pneumothorax, positive for effusion. | -ptx +eff
No focal consolidation, large pleural effusion, or pneumothorax. | -cons -eff -ptx
No consolidation, effusion, pneumothorax, edema, mass or nodule. | -cons -eff -ptx -edema -lesion
Lungs are clear bilaterally without effusions, pneumothorax. | -eff -ptx
No effusion, pneumothorax is seen. | -eff -ptx
No lines, tubes, or pneumothorax. | -dev -ptx
No tubes, lines. | -dev
No enlarged heart or widened mediastinum. | -heart -ecm
No pneumothorax following thoracentesis. | -ptx
No evidence of pneumonia; stable left effusion, no pneumothorax | -pna +eff -ptx
"""

# Tables, bullets, boxes and numbers that a form becomes in a line of text.
FORMS = r"""
Consolidation: Nil of note. | -cons
Pneumothorax | No\nEffusion | Yes | -ptx +eff
Pneumothorax\t\tNo\nEffusion\t\tYes | -ptx +eff
Pneumothorax .......... No | -ptx
Pneumothorax: <none> | -ptx
• No pneumothorax • Small effusion • Left PICC | -ptx +eff +dev
a) No pneumothorax b) small effusion | -ptx +eff
Absent: pneumothorax, effusion. Present: consolidation. | -ptx -eff +cons
Pertinent negatives: pneumothorax, effusion. | -ptx -eff
No pneumothorax… small effusion. | -ptx +eff
No pneumothorax · small effusion | -ptx +eff
1) No pneumothorax 2) Small effusion 3) mild edema | -ptx +eff +edema
(1) No pneumothorax (2) Small effusion | -ptx +eff
Pneumothorax: Non-visualized. | -ptx
☐ Pneumothorax ☑ Effusion | -ptx +eff
☐ Pneumothorax ☒ Effusion | -ptx +eff
Pneumonia (vs. atelectasis). | ?pna ?atel
Right base atelectasis (versus early pneumonia) and small effusion. | ?atel ?pna +eff
Focal consolidation: None Pleural effusion: Small Pneumothorax: None | -cons +eff -ptx
Effusion: Right: none. Left: small. | +eff
No nodule (series 2) or mass. | -lesion
There is no\npneumothorax. | -ptx
Small effusion, no\npneumothorax. | +eff -ptx
LUNGS/PLEURA: Clear. No effusion. CARDIAC: Mild cardiomegaly. | -eff +heart
Accession no: 12. Effusion. | +eff
pneumothorax:no,effusion:no,edema:yes | -ptx -eff +edema
"""

# What has nearly gone is there, what was not there before is there now, and two denials affirm.
CHANGE = r"""
Consolidation wasn’t present previously. | +cons
Never resolved pneumonia. | +pna
No interval enlargement of the effusion. | +eff
Near complete resolution of the effusion. | +eff
Near-complete resolution of the edema. | +edema
Nearly resolved effusion. | +eff
Almost completely resolved pneumothorax. | +ptx
Pneumothorax has nearly resolved. | +ptx
Pneumothorax has almost completely resolved. | +ptx
Effusion seen previously is gone. | -eff
Effusion is now gone. | -eff
The effusion previously seen is unchanged. | +eff
The nodule previously demonstrated is again seen. | +lesion
Right basilar opacity not seen on the prior exam. | +opacity
Left lower lobe opacity, not present previously. | +opacity
New opacity not previously seen. | +opacity
Opacity not seen on prior. | +opacity
The lungs are not clear of consolidation. | +cons
Effusion has not recurred. | -eff
Pneumothorax did not recur. | -ptx
Interval near resolution of pneumothorax. | +ptx
Consolidation has mostly cleared. | +cons
Effusion not seen before is now present. | +eff
Nodule not identified on prior CT. | +lesion
The nodule was not definitely seen on the prior. | +lesion
Edema has nearly cleared. | +edema
Pneumothorax - not seen, effusion - seen. | -ptx +eff
The nodule is not definitely seen on the current study. | -lesion
Previously seen effusion has resolved. | -eff
No cardiac enlargement. | -heart
No enlargement of the heart. | -heart
Effusion has completely resolved. | -eff
No interval development of effusion. | -eff
The pneumothorax previously seen has resolved. | -ptx
There is no clear consolidation. | -cons
Effusion is absent. | -eff
"""

# Further words of doubt, and what is none.
DOUBT = r"""
Opacity could be atelectasis vs. pneumonia vs. aspiration. | +opacity ?atel ?pna
It is not possible to exclude pneumonia. | ?pna
Impossible to exclude a tiny effusion. | ?eff
Tiny effusion hard to exclude. | ?eff
Pneumonia should be considered. | ?pna
Pneumonia is in the differential. | ?pna
Perhaps a small effusion. | ?eff
Maybe a small effusion. | ?eff
Potential pneumonia. | ?pna
Potentially pneumonia. | ?pna
I can’t see any pneumothorax. | -ptx
Not without effusion. | +eff
There is no doubt about pneumonia. | +pna
No evidence to exclude pneumonia. | ?pna
Heart size cannot be assessed. | ?heart
Heart size is difficult to assess. | ?heart
Pleural and pericardial effusions. | +eff
Heart size is not normal. | +heart
The heart is not normal in size. | +heart
The lungs are not free of edema. | +edema
Effusion is not absent. | +eff
Pneumothorax is difficult to assess. | ?ptx
Limited evaluation for pneumothorax. | ?ptx
Minimal if any effusion. | ?eff
Trace if any effusion. | ?eff
Little if any effusion. | ?eff
Small effusion, if any. | ?eff
Effusion, if present, is small. | ?eff
At most a small effusion. | ?eff
Findings are inconsistent with pneumonia. | -pna
Pneumonia -vs- atelectasis. | ?pna ?atel
Pneumonia cannot entirely be excluded. | ?pna
Superimposed infection would be hard to exclude. | ?pna
Effusion is questioned. | ?eff
Lack of change in effusion. | +eff
Not only effusion but also consolidation. | +eff +cons
LLL consolidation c/w PNA. | +cons +pna
RLL opacity c/f pneumonia. | +opacity ?pna
Failure to visualize the left costophrenic angle, likely effusion. | +eff
Opacity suggests pneumonia. | +opacity +pna
Atelectasis is favored to be chronic. | +atel
Pneumonia is excluded. | -pna
Consider follow-up if any concern; mild cardiomegaly. | +heart
Atelectasis as opposed to consolidation. | +atel -cons
Heart size is normal. | -heart
The mediastinum is not widened. | -ecm
No concern for pneumonia. | -pna
"""

# What is said of a part of the chest behind a denied list is not said of the list; what has its verb is in no
# list; a change that is denied beside a finding; a qualification behind an answer; two words for one thing.
WHOSE_WORDS = r"""
No effusion, edema or pneumothorax and the aortic and cardiac contours are stable. | -eff -edema -ptx
No pneumonia, effusion or pneumothorax and heart size remains normal. | -pna -eff -ptx -heart
No pneumothorax, consolidation, or effusion and the left PICC remains in place. | -ptx -cons -eff +dev
No edema, pneumothorax or effusion with tubes and lines unchanged. | -edema -ptx -eff +dev
Without edema, effusion or consolidation and the lungs have improved aeration. | -edema -eff -cons
No edema, effusion and the heart remains large. | -edema -eff +heart
No pneumothorax, consolidation and effusion are unchanged. | -ptx +cons +eff
No pneumothorax and the edema is unchanged. | -ptx +edema
Effusion is not seen on the present exam, nor is edema. | -eff -edema
Pneumonia is not present in the lungs, nor is there a nodule. | -pna -lesion
Pneumothorax is not visible at either angle or on the lateral view. | -ptx
Rib fractures are not seen in the visualized bones, nor is pneumothorax. | -fx -ptx
Edema and effusion are not seen. | -edema -eff
No effusion or change in the small right pneumothorax. | -eff +ptx
No pneumothorax, edema, or interval worsening of the consolidation. | -ptx -edema +cons
No effusion or change in position of the tubes. | -eff +dev
No development or progression of pneumonia. | -pna
Heart: unchanged, enlarged. | +heart
Heart size: stable, normal. | -heart
Effusion: tiny, possible. | ?eff
Edema: mild, cannot be excluded. | ?edema
Pneumothorax: decreased, no longer visible. | -ptx
Effusion: improved, now resolved. | -eff
Effusion: small, left. Pneumothorax: small, edema: none. | +eff +ptx -edema
Smaller or unchanged effusion. | +eff
Linear or subsegmental atelectasis. | +atel
Acute or chronic rib fractures. | +fx
A 7 or 8 mm nodule. | +lesion
PICC or central line. | +dev
Patchy atelectasis or pneumonia. | ?atel ?pna
Failed resolution of pneumonia. | +pna
Pneumonia: low likelihood. | ?pna
Ø effusion, ø edema | -eff -edema
Left but not right effusion. | +eff
No consolidation, effusion, or pneumothorax and the osseous structures are stable. | -cons -eff -ptx
There is no edema, effusion or pneumothorax and the aorta is unchanged. | -edema -eff -ptx
No pneumonia, effusion or edema and postsurgical changes are stable. | -pna -eff -edema
Without effusion, pneumothorax or edema and otherwise stable. | -eff -ptx -edema
This may represent atelectasis, pneumonia, or aspiration and is unchanged. | ?atel ?pna
Effusions and lung nodules are not seen. | -eff -lesion
The left effusion and left lung consolidation have cleared. | -eff -cons
Pneumothorax, effusion and abnormal cardiac contour are not identified. | -ptx -eff
Rib fractures and destructive bone lesions are not seen. | -fx
No pneumothorax and PICC with its tip in the SVC is unchanged. | -ptx +dev
No pneumothorax, effusion with adjacent atelectasis is unchanged. | -ptx +eff +atel
No pneumothorax, cardiomegaly with mild edema is stable. | -ptx +heart +edema
No infiltrate or increase in interstitial markings. | -opacity
No consolidation or change in the lungs to suggest pneumonia. | -cons -pna
No effusion or change in the size of the heart, which remains normal. | -eff -heart
No effusion, cardiomegaly and tortuous aorta are unchanged. | -eff +heart
No pneumothorax, basal atelectasis and small effusion persist. | -ptx +atel +eff
No edema, effusion with pigtail catheter is unchanged. | -edema +eff +dev
No edema, scarring in the mid and upper lungs is unchanged. | -edema +opacity
No edema or effusion and nodule in the left lung is unchanged. | -edema -eff +lesion
No consolidation or change in lung volumes, effusion or pneumothorax. | -cons -eff -ptx
No fracture or changes in the bones or pneumothorax. | -fx -ptx
No focal consolidation, linear or patchy opacity. | -cons -opacity
No pneumothorax, old or healing fracture. | -ptx -fx
New or worsening edema. | +edema
Effusion is no longer seen and atelectasis is present. | -eff +atel
Effusion: small, probable. | ?eff
Nodule: stable, not enlarged. | +lesion
Nodule is low suspicion for malignancy. | +lesion
4 mm Ø nodule. | +lesion
XR CHEST 1 VIEW PORT. Small effusion. | ~dev +eff
Free air from laparoscopic ports. | ~dev
Right chest port in place. | +dev
CT to evaluate for malignancy given the right hilar mass. | +lesion
Portable film to assess for lines shows the PICC in the SVC. | +dev
Effusion: small, previously seen. | +eff
Edema or atelectasis is possible and the left PICC remains in place. | ?edema ?atel +dev
Neither the heart nor the mediastinal contours is enlarged. | -heart -ecm
Lines/tubes/devices: Right chest wall port. | +dev
"""

# A device is there where only its tip is not seen.
DEVICES = r"""
S/p chest tube, no PTX. | +dev -ptx
ETT terminates 4 cm above the carina. | +dev
NGT in stomach. | +dev
Swan-Ganz tip in main PA. | +dev
Supportive care. | ~dev
There is no support for pneumonia. | -pna ~dev
Findings do not support pneumonia. | -pna ~dev
NG tube tip not seen. | +dev
The tip of the NG tube is not seen. | +dev
NG tube courses below the diaphragm, tip not visualized. | +dev
ET tube tip is not well seen. | +dev
Chest tube side port is not visualized. | +dev
No visible pneumothorax, status post chest tube removal. | -ptx -dev
Lines/tubes: Right IJ CVC tip in SVC. Lungs: Bibasilar atelectasis. Pleura: No PTX. | +dev +atel -ptx
ETT has been removed. NGT remains. | +dev
Chest tube removal with no pneumothorax. | -dev -ptx
Pacemaker lead tips not seen. | +dev
Chest tube not seen. | -dev
Tubes and lines have been removed. | -dev
Support devices are unchanged. | +dev
Support lines and tubes in place. | +dev
No chest tube. | -dev
Interval removal of ETT and NGT; right PICC unchanged. | +dev
"""

# What is advised of a finding is no doubt of it; "no larger" before a noun denies; the last of several that
# are possible; what an "or" does not join; exceptions; what is gone in other words.
ADVICE = r"""
CT could be obtained for further evaluation of the right hilar mass. | +lesion
CT may be helpful to characterize the mass. | +lesion
Consider CT for the left upper lobe nodule. | +lesion
Lateral views would better assess the effusion. | +eff
Comparison with older films would be helpful to determine the chronicity of the rib fractures. | +fx
Consider diuresis for pulmonary edema. | +edema
Consider retracting the endotracheal tube by 2 cm. | +dev
NG tube was removed. Consider advancing the ET tube. | +dev
Nodule in the right lung. No other nodules. CT could be done to evaluate the nodule. | +lesion
Consider pneumonia. | ?pna
CT could be obtained to exclude pneumonia. | ?pna
Opacity could represent pneumonia. | ?pna
This may be an effusion. | ?eff
No larger pleural effusions. | -eff
No larger effusion or pneumothorax. | -eff -ptx
The effusion is no larger. | +eff
Effusion no larger than before. | +eff
Opacity may reflect atelectasis or, less likely, pneumonia. | ?atel ?pna
Mild edema or, less likely, infection. | ?edema ?pna
Differential considerations include atelectasis, aspiration, and pneumonia. | ?atel ?pna
Findings may represent atelectasis, edema, and pneumonia. | ?atel ?edema ?pna
Opacity may represent atelectasis, and the effusion is unchanged. | ?atel +eff
Possible effusion and a chest tube is in place. | ?eff +dev
No pneumothorax or hematoma following pacemaker placement. | -ptx +dev
No pneumothorax or effusion after chest tube placement. | -ptx -eff +dev
Right basilar opacity raises the possibility of pneumonia. | +opacity ?pna
No Rt. sided effusion. | -eff
no pleural effusion on the rt. patchy opacity in the lt lower zone. | -eff +opacity
Decubitus views may be performed for the evaluation of pleural effusions. | ?eff
The PICC is no longer in place at the cavoatrial junction. | +dev
One of two chest tubes discontinued. | +dev
Atelectasis with or without pneumonia cannot be excluded. | ?atel ?pna
Atelectasis with or without a small effusion. | +atel ?eff
Right IJ catheter is no longer in place. | -dev
PICC line discontinued. | -dev
One of the chest tubes was discontinued. | +dev
The PICC is no longer in position in the SVC. | +dev
No newly appeared pleural effusion. | ?eff
No acute process beyond mild atelectasis. | +atel
No consolidation besides minimal left atelectasis. | -cons +atel
No effusion save for minor atelectasis at the base. | -eff +atel
Superimposed infection is a concern. | ?pna
The appearance argues against pneumonia. | -pna
Suggestive but not diagnostic of pneumonia. | ?pna
No pacemaker lead fracture. | +dev ~fx
No hardware fracture. | +dev ~fx
Hairline fracture of the left clavicle. | +fx
No evidence of lead fracture, pneumothorax, or effusion. | -ptx -eff
There may be a small pneumothorax after biopsy. | ?ptx
Opacity may represent pneumonia and a follow-up radiograph to document resolution of this opacity. | ?pna
Consider CT to determine any fracture. | ?fx
The opacity is a concern for pneumonia. | +opacity ?pna
This may reflect mild edema, small effusions, and an endotracheal tube in the trachea. | ?edema +dev
Opacity may reflect atelectasis, similar to prior, and small right effusion. | ?atel +eff
This argues against pneumonia and favors atelectasis. | -pna ?atel
No effusion on the lt. small effusion on the rt. side. | +eff
Atelectasis or post obstructive pneumonia. | ?pna
No focal opacity beyond the hilum, effusion, or pneumothorax. | -opacity -eff -ptx
Nonspecific opacity but not diagnostic of pneumonia. | +opacity ?pna
Effusion raises possibility of pneumonia. | +eff ?pna
"""

KINDS = (THEN_SOMETHING_NEW, FORMS, CHANGE, DOUBT, WHOSE_WORDS, DEVICES, ADVICE)


@pytest.mark.parametrize("line", [line for kind in KINDS for line in kind.strip().split("\n")])
def test_turn(line):
    """Each sentence says what a reader would say it does."""
    check(*line.rsplit(" | ", 1))
