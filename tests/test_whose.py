"""labels.py, sentence by sentence: which finding it is that a phrase speaks of. Lines as in
test_sentences.py."""
import pytest
from test_sentences import check

# What follows is said of this finding, or already of the next.
WHOSE = r"""
Other than mild cardiomegaly, the study is unremarkable. | +heart
The left effusion is no longer appreciated. | -eff
The previously seen right pneumothorax is no longer appreciated. | -ptx
Pneumothorax is no longer evident and effusion is small. | -ptx +eff
Effusion is seen, pneumothorax is not. | +eff -ptx
Consolidation is not seen and effusions are small. | -cons +eff
ET tube not in place. | -dev
Small apical pneumothorax following chest tube removal. | +ptx
Pneumothorax has increased after removal of the chest tube. | +ptx
Increased right effusion since chest tube removal. | +eff
There is a small left apical pneumothorax after the chest tube was removed. | +ptx
There is a small pneumothorax status post removal of left chest tube. | +ptx
Left pneumothorax, chest tube removed. | +ptx
Unchanged effusion, chest tube has been removed. | +eff
Bibasilar atelectasis, ETT has been removed. | +atel -dev
Small left effusion, otherwise unremarkable. | +eff
Right PICC in place, otherwise unremarkable. | +dev
Cardiomegaly, lungs unremarkable. | +heart
Small nodule in the right apex, remainder of the lungs unremarkable. | +lesion
Left effusion unchanged, pneumothorax no longer seen. | +eff -ptx
Small left effusion, edema resolved. | +eff -edema
Bibasilar atelectasis with effusion not seen. | +atel -eff
Moderate cardiomegaly, pulmonary edema has resolved. | +heart -edema
Left effusion with interval removal of the right chest tube. | +eff -dev
Stable cardiomegaly and resolved edema. | +heart -edema
Persistent left lower lobe consolidation, effusion has resolved. | +cons -eff
Persistent small effusion, right PICC removed. | +eff -dev
Consolidation in the left lower lobe, left costophrenic angle not visualized. | +cons
Right chest tube in place, pneumothorax no longer seen. | +dev -ptx
Pigtail catheter in place, effusion resolved. | +dev -eff
Left lower lobe pneumonia, apical lordotic view shows nodule is not present. | +pna -lesion
Rib fractures, pneumothorax excluded. | +fx -ptx
Pneumothorax is not seen and cardiomegaly is stable. | -ptx +heart
Effusion has resolved and atelectasis has improved. | -eff +atel
Edema has resolved and consolidation persists. | -edema +cons
Edema has resolved and effusions have decreased. | -edema +eff
Pneumothorax has resolved and atelectasis remains. | -ptx +atel
Pneumothorax is no longer seen, atelectasis persists. | -ptx +atel
The lung bases are not clear due to atelectasis. | +atel
The left hemidiaphragm is not seen due to effusion. | +eff
The left hemidiaphragm is not visualized secondary to atelectasis. | +atel
Left hemidiaphragm is no longer seen due to left lower lobe collapse. | +atel
The right costophrenic angle is not sharp, suggesting a small effusion. | +eff
Lack of visualization of the left hemidiaphragm due to atelectasis. | +atel
Post line placement: no pneumothorax. | +dev -ptx
A pneumothorax cannot be seen. | -ptx
Effusion cannot be identified. | -eff
Small pneumothorax not present on the earlier exam. | +ptx
Pneumothorax absent, effusion present. | -ptx +eff
Edema mild, effusion not seen | +edema -eff
Pacemaker is unremarkable. | +dev
Lines and tubes are unremarkable. | +dev
Right PICC is unremarkable in position. | +dev
Right lower lobe opacity and otherwise unremarkable exam. | +opacity
Left rib fractures, chest otherwise unremarkable. | +fx
Small right pneumothorax, the NG tube has been removed. | +ptx -dev
Pulmonary edema has worsened since removal of the Swan-Ganz catheter. | +edema
Atelectasis at the left base, the costophrenic angle is not seen. | +atel
There is a left effusion and the pneumothorax has resolved. | +eff -ptx
Small effusion with no pneumothorax seen and ETT removed. | +eff -ptx -dev
ETT in place, NGT removed. | +dev
Right IJ line unchanged and left PICC removed. | +dev
Pneumothorax following thoracentesis has resolved. | -ptx
Previously seen pneumothorax after line placement has resolved. | -ptx
"""

# Doubt about another finding, about an attribute, about the film.
DOUBT = r"""
The left base is not well seen due to effusion. | +eff
Small left effusion and possible pneumonia. | +eff ?pna
Cardiomegaly and possible mild edema. | +heart ?edema
Small effusion, possibly increased. | +eff
Bibasilar opacities, possibly atelectasis. | +opacity ?atel
Rib fracture, possibly old. | +fx
Small effusion, pneumonia suspected. | +eff ?pna
Left effusion, questionable nodule. | +eff ?lesion
Small left effusion, evaluation limited by rotation. | +eff
Small left effusion with obscured hemidiaphragm. | +eff
Left effusion, hemidiaphragm not well seen. | +eff
Left effusion, incompletely imaged. | +eff
Right upper lobe mass, CT should be considered. | +lesion
Rib fractures, dedicated views can be considered. | +fx
Left basilar atelectasis with pneumonia less likely. | +atel ?pna
Opacity may reflect atelectasis, small left effusion. | +opacity ?atel +eff
Possible left lower lobe pneumonia, ETT in place. | ?pna +dev
Borderline cardiomegaly, small effusion. | ?heart +eff
Questionable nodule at the right apex, moderate left effusion. | ?lesion +eff
Possible pneumonia, no effusion, stable cardiomegaly. | ?pna -eff +heart
Bilateral effusions with overlying atelectasis, underlying consolidation not excluded. | +eff +atel ?cons
Bibasilar atelectasis, superimposed pneumonia cannot be excluded. | +atel ?pna
Mild cardiomegaly, superimposed infection cannot be excluded. | +heart ?pna
Small bilateral effusions with bibasilar opacities, pneumonia cannot be excluded. | +eff +opacity ?pna
Right lower lobe consolidation and possible small effusion. | +cons ?eff
Right PICC in place and possible small effusion. | +dev ?eff
ETT in place, possible pneumonia. | +dev ?pna
Left rib fracture with possible small pneumothorax. | +fx ?ptx
Large right pneumothorax with possible tension. | +ptx
Mild edema, limited exam. | +edema
Bibasilar atelectasis in the setting of limited inspiration. | +atel
Atelectasis, possibly related to low volumes. | +atel
Mass for which biopsy should be considered. | +lesion
"""

# Verbs that end no denial, and words that stand for one.
PLAINER = r"""
Not clear whether this represents pneumonia. | ?pna
It is unclear whether there is a small effusion. | ?eff
It is uncertain whether there is a pneumothorax. | ?ptx
Neg for PTX. | -ptx
Follow-up radiograph to ensure resolution of pneumonia. | +pna
Recommend follow-up to document resolution of the left lower lobe pneumonia. | +pna
Recommend repeat radiograph after treatment to document resolution of right upper lobe consolidation. | +cons
Followup radiographs are recommended to confirm resolution of the consolidation. | +cons
Recommend follow-up to assess clearing of the opacity. | +opacity
Chest radiograph without prior comparison demonstrates small left effusion. | +eff
Single view without lateral shows a left effusion. | +eff
CT without contrast shows a right upper lobe mass. | +lesion
Without comparison, cardiomegaly of uncertain chronicity. | +heart
No change to suggest pneumonia. | -pna
Negative pneumothorax. | -ptx
Neg PTX, neg effusion. | -ptx -eff
There does not appear to be a pneumothorax. | -ptx
A pneumothorax does not appear to be present. | -ptx
Neither lung has consolidation. | -cons
The left lung does not have an effusion. | -eff
Neither side has an effusion. | -eff
No focal opacity is seen to suggest pneumonia. | -opacity -pna
No findings are seen to suggest CHF. | -edema
I do not think there is an effusion. | -eff
Neg for acute fracture. | -fx
Chest neg for infiltrate. | -opacity
CXR neg for PNA. | -pna
"""

# Where a denial ends.
ENDS = r"""
No focal consolidation aside from left basilar atelectasis. | -cons +atel
No pneumothorax post line placement. | -ptx +dev
No pneumothorax, effusion has increased. | -ptx +eff
No pneumothorax, cardiomegaly persists. | -ptx +heart
No pneumothorax, a very small left effusion. | -ptx +eff
No pneumothorax, RLL consolidation. | -ptx +cons
No pneumothorax, streaky basilar atelectasis. | -ptx +atel
No pneumothorax, biapical scarring. | -ptx +opacity
No effusion, bibasal atelectasis. | -eff +atel
No more than minimal atelectasis. | +atel
No more than a small effusion. | +eff
No less than three rib fractures. | +fx
No tension component to the left pneumothorax. | +ptx
"""

# A change or an attribute is denied, not the finding; and what only looks like it.
CHANGE = r"""
No sig change in effusion. | +eff
No pneumothorax from line placement. | -ptx +dev
No kink in the chest tube. | +dev
No discontinuity of the pacemaker leads. | +dev
No migration of the PICC line. | +dev
No complication from chest tube placement. | +dev
No changes of CHF. | -edema
No acute changes of pneumonia. | -pna
No acute changes, effusion or pneumothorax. | -eff -ptx
No acute osseous changes, pneumothorax or effusion. | -ptx -eff
Without acute change or infiltrate. | -opacity
No displacement of the left clavicle fracture. | +fx
No shift or enlargement of the pneumothorax. | +ptx
No evidence of tension in the left pneumothorax. | +ptx
No air bronchograms within the consolidation. | +cons
No mediastinal shift from the large effusion. | +eff
No calcification within the nodule. | +lesion
No cavitation in the left upper lobe mass. | +lesion
No loculation of the effusion. | +eff
No healing of the rib fracture. | +fx
No air-fluid level in the pneumothorax. | +ptx
"""

# Hearts and mediastina.
ORGANS = r"""
Small left pleural effusion, heart size unremarkable. | +eff -heart
Bibasilar atelectasis, mediastinum unremarkable. | +atel -ecm
No changes to suggest heart failure. | -edema
Prominent pulmonary vessels, heart size normal. | -heart
Increased interstitial markings, heart size is normal. | -heart
Enlarged hilar lymph nodes, heart size normal. | -heart
Normal lung volumes, cardiac silhouette enlarged. | +heart
Normal pulmonary vascularity, heart enlarged. | +heart
Unremarkable bony thorax, heart mildly enlarged. | +heart
Large hiatal hernia behind the heart. | ~heart
Increased opacity behind the heart. | ~heart +opacity
Large mass adjacent to the heart. | ~heart +lesion
Opacity along the right heart border has increased. | ~heart +opacity
Increased opacity at the right heart border. | ~heart
Heart size is greater than normal. | +heart
Heart size exceeds the upper limits of normal. | +heart
Heart is slightly above normal limits in size. | +heart
Heart is neither enlarged nor displaced. | -heart
The heart does not appear to be enlarged. | -heart
The heart is not dilated. | -heart
The cardiac silhouette is not significantly or acutely enlarged. | -heart
The mediastinum does not appear abnormally widened. | -ecm
The heart is unchanged, mildly enlarged. | +heart
Small effusion, heart size difficult to assess. | +eff ?heart
Heart size is not significantly changed and is mildly enlarged. | +heart
Cardiomegaly with unremarkable mediastinum. | +heart -ecm
The mediastinum is neither widened nor shifted. | -ecm
Neither the heart nor the mediastinum is enlarged. | -heart -ecm
The cardiac silhouette is slightly larger than normal. | +heart
The heart is more than normal in size. | +heart
Large bilateral effusions, cardiac silhouette normal. | +eff -heart
Prominent interstitial markings, mediastinum normal. | -ecm
Increased AP diameter of the chest, heart normal. | -heart
Large right upper lobe mass, mediastinum normal. | +lesion -ecm
Abnormal lung bases, heart normal. | -heart
Unchanged right lower lobe opacity, heart size is enlarged. | +heart
Large left effusion shifts the heart to the right. | ~heart
Prominent fat pad at the heart border. | ~heart
"""

# British spelling, ligatures, dates, numbers, abbreviations, forms.
WORDS = r"""
No haemothorax or pneumothorax. | -ptx -eff
No pulmonary oedema. | -edema
No oedema or effusion. | -edema -eff
Mild interstitial oedema. | +edema
Pulmonary oedema has worsened. | +edema
Moderate left and no right pleural effusion. | +eff
There is a right, but no left, pleural effusion. | +eff
Findings in keeping with pulmonary oedema. | +edema
Effusion: [X] none [ ] small [ ] moderate [ ] large | -eff
Effusion | small | left\nPneumothorax | none | | +eff -ptx
| Effusion | none |\n| Edema | mild | | -eff +edema
| Finding | Present |\n|---|---|\n| Effusion | No |\n| Edema | Yes | | -eff +edema
Haemopneumothorax on the right. | +ptx
Tumour in the right upper lobe. | +lesion
No tumour seen. | -lesion
No pneumothorax, effusions have increased since yesterday. | -ptx +eff
No pneumothorax & small effusion. | -ptx +eff
Considerable left effusion. | +eff
Considerable cardiomegaly. | +heart
Compared with May 5, left effusion is unchanged. | +eff
Since May 2019, the effusion has increased. | +eff
As compared to the study of May 3rd, bibasilar atelectasis. | +atel
More or less unchanged effusion. | +eff
Two or three pulmonary nodules. | +lesion
At least two or three rib fractures. | +fx
ET tube at or just above the carina. | +dev
No sig. effusion. | -eff
No definite (i.e. large) effusion. | -eff
No complication, e.g. pneumothorax. | -ptx
No comp. fracture. | -fx
Interval removal of the right\nSwan-Ganz catheter. | -dev
Findings in line with pneumonia. | +pna ~dev
Pleural line at the midclavicular line. | ~dev
Collapse of the T12 vertebral body. | ~atel
Rib fractures along the anterior axillary line. | ~dev +fx
Pleural ﬂuid on the left. | +eff
Small pleural ef­fusion. | +eff
Small pneumothorax, not seen on yesterday's film. | +ptx
Cardiomegaly yes, edema no. | +heart -edema
"""

# Several findings in one breath, as reports are written.
LONG = r"""
Persistent left effusion with associated atelectasis, and no pneumothorax is seen. | +eff +atel -ptx
The endotracheal and nasogastric tubes are unchanged, and there is no pneumothorax. | +dev -ptx
Neither pneumothorax nor effusion is identified following thoracentesis. | -ptx -eff
Previously described opacity, effusion, and edema have all resolved. | -opacity -eff -edema
Aside from mild cardiomegaly and small effusions, the chest is unremarkable. | +heart +eff
No effusions, pneumothorax or consolidation are seen, but edema cannot be excluded. | -eff -ptx -cons ?edema
Pneumothorax, pleural effusion, and consolidation are absent. | -ptx -eff -cons
Consolidation, effusion and pneumothorax are not seen. | -cons -eff -ptx
Focal consolidation and pleural effusion are not identified. | -cons -eff
Pleural effusions or pneumothorax are not present. | -eff -ptx
Pulmonary edema and bilateral pleural effusions have resolved. | -edema -eff
The pulmonary edema and the effusions have resolved. | -edema -eff
The left effusion and the right basilar opacity are no longer seen. | -eff -opacity
Atelectasis, pneumonia, or aspiration could be considered. | ?atel ?pna
Opacities at the bases may represent atelectasis, aspiration, or pneumonia. | +opacity ?atel ?pna
Nodular opacity, mass, or pneumonia cannot be excluded. | ?pna
A small pneumothorax or effusion cannot be excluded. | ?ptx ?eff
Pneumonia and effusion are unlikely. | ?pna ?eff
The chest tube and the mediastinal drain have been removed. | -dev
Both chest tubes have been removed, and there is no pneumothorax. | -dev -ptx
Cardiomegaly and pulmonary vascular congestion are unchanged. | +heart ?edema
Cardiomegaly with pulmonary edema and bilateral effusions, right greater than left. | +heart +edema +eff
Bilateral effusions, right greater than left, with atelectasis, are not changed. | +eff +atel
No definite pneumothorax, although the apices are obscured by the chin. | -ptx
Heart size is difficult to assess given the effusion. | ?heart +eff
Interval resolution of left effusion and persistent right effusion. | +eff
New right lower lobe opacity, suspicious for pneumonia, and a small effusion. | +opacity ?pna +eff
Rib fractures on the left, healed, without pneumothorax. | +fx -ptx
Lungs are clear of consolidation, and pleural effusion and pneumothorax are absent. | -cons -eff -ptx
There is no focal consolidation, and heart size is enlarged. | -cons +heart
Mild cardiomegaly is present, and the lungs are clear without effusion. | +heart -eff
There is no evidence of pneumothorax, effusion is trace. | -ptx +eff
Left retrocardiac opacity has resolved, and right base atelectasis is unchanged. | -opacity +atel
Vascular congestion without overt edema or effusion. | -eff
Stable appearance of the chest with cardiomegaly, sternal wires, and no edema. | +heart -edema
PICC line, previously in the axilla, now ends in the SVC; no pneumothorax. | +dev -ptx
Effusions and edema are improved, consolidation has resolved. | +eff +edema -cons
Effusion, atelectasis and consolidation: none. | -eff -atel -cons
"""

# A list whose items have a side or a size, a predicate without a verb, and "post-procedure".
SHARED = r"""
The effusion, the pneumothorax, and the basal consolidation have all cleared. | -eff -ptx -cons
No evidence of post procedure pneumothorax following left thoracentesis, with decreased effusion. | -ptx +eff
Pneumothorax not seen, and effusion small. | -ptx +eff
Pneumonia not excluded, and follow-up CT advised. | ?pna
Pneumothorax not identified, and lungs clear. | -ptx
Effusion not seen, and heart size normal. | -eff -heart
Effusion resolved, and heart size normal. | -eff -heart
Chest tube removed, and lungs clear. | -dev
Chest tube removed and no pneumothorax. | -dev -ptx
Nodule not seen, and CT may be obtained for confirmation. | -lesion
Right apical nodule no longer seen, and bones intact. | -lesion
Mass not excluded, or atelectasis. | ?lesion
Consolidation cleared, and atelectasis at the left base. | -cons +atel
Pneumonia unlikely, and effusion small. | ?pna +eff
The right effusion, left effusion, and basal atelectasis have resolved. | -eff -atel
The right pneumothorax, left effusion and pulmonary edema have resolved. | -ptx -eff -edema
The left effusion, right basilar opacity, and edema have all cleared. | -eff -opacity -edema
The endotracheal tube, the nasogastric tube, and the Swan-Ganz catheter have been removed. | -dev
The endotracheal tube, right chest tube, and left PICC have been removed. | -dev
Mild edema, small effusions, and bibasilar atelectasis have resolved. | -edema -eff -atel
Left basilar atelectasis, small effusion, and edema are no longer evident. | -atel -eff -edema
The opacity, the effusion, and the pneumothorax are no longer seen. | -opacity -eff -ptx
Pneumothorax, large effusion, and consolidation are not seen. | -ptx -eff -cons
Pneumothorax, large pleural effusion or focal consolidation is not identified. | -ptx -eff -cons
Superimposed pneumonia, small effusion, or aspiration cannot be excluded. | ?pna ?eff
A small left pneumothorax, trace effusion, or nondisplaced rib fracture cannot be excluded. | ?ptx ?eff ?fx
No post-procedure pneumothorax. | -ptx
No post biopsy pneumothorax is seen. | -ptx
There is no post-thoracentesis pneumothorax. | -ptx
No post-traumatic pneumothorax or rib fracture. | -ptx -fx
No post operative effusion or pneumothorax. | -eff -ptx
Small pneumothorax cannot be excluded, and effusion is unchanged. | ?ptx +eff
Pneumonia cannot be excluded, and edema has improved. | ?pna +edema
The right effusion, small pneumothorax, and left basal consolidation are no longer seen. | -eff -ptx -cons
Lobar consolidation, large effusion, and pneumothorax are not identified. | -cons -eff -ptx
Focal consolidation, large pleural effusion, and overt pulmonary edema are absent. | -cons -eff -edema
Edema cleared and heart smaller. | -edema
Pneumothorax resolved and lungs clear. | -ptx
Fracture not excluded, and dedicated views advised. | ?fx
No evidence of post-traumatic pneumothorax, hemothorax, or rib fracture. | -ptx -eff -fx
There is no post-intubation pneumothorax. | -ptx
"""

# Where a doubt or a denial ends, and lists of what has not changed.
TURNS = r"""
There is no pleural effusion, nor is there pneumothorax or focal consolidation. | -eff -ptx -cons
No effusion is identified, nor is a pneumothorax seen. | -eff -ptx
The heart is not enlarged, nor is the mediastinum widened. | -heart -ecm
No interval change in small left pleural effusion or left basilar atelectasis. | +eff +atel
No significant change in cardiomegaly, small effusions, or left basilar atelectasis. | +heart +eff +atel
No change in tubes or lines, and no pneumothorax. | +dev -ptx
No shift or enlargement of the pneumothorax. | +ptx
The consolidation is no worse, and effusion is no better. | +cons +eff
There is mild cardiomegaly and pleural effusions are not seen. | +heart -eff
There is mild cardiomegaly, and pleural effusion and pneumothorax are absent. | +heart -eff -ptx
There is a left lower lobe opacity and effusions have resolved. | +opacity -eff
Images show small right effusion and pneumothorax is not seen. | +eff -ptx
The lungs demonstrate residual bibasilar atelectasis, and effusions are no longer seen. | +atel -eff
There are bibasilar opacities, and lines and tubes have been removed. | +opacity -dev
Mild interstitial edema and small effusions, and underlying infection cannot be excluded. | +edema +eff ?pna
Edema, small effusions, and underlying infection cannot be excluded. | ?edema ?eff ?pna
Cannot exclude left lower lobe pneumonia, and there is no effusion. | ?pna -eff
Cannot exclude pneumonia or small effusion, with stable cardiomegaly. | ?pna ?eff +heart
Cannot rule out small pneumothorax, and a right chest tube is in place. | ?ptx +dev
Pneumonia cannot be excluded at the left base given the effusion, which is moderate. | ?pna +eff
Left lower lobe pneumonia is suspected, and a small effusion is present. | ?pna +eff
Possible pneumonia, atelectasis, and effusion. | ?pna
Opacity is probably atelectasis, and effusion is present. | ?atel +eff
Interval removal of chest tubes and development of a small pneumothorax. | -dev +ptx
No development of a pneumothorax. | -ptx
The mass is not well defined, and no effusion is seen. | +lesion -eff
The nodule is not well seen. | ?lesion
No evidence of hardware failure. | +dev
No hardware. | -dev
"""

# Choices that are none, follow-up, degrees, places.
READ = r"""
Pneumonia could not be excluded and the ET tube is in good position. | ?pna +dev
A superimposed pneumonia at the left base cannot be excluded in the setting of moderate effusion. | ?pna +eff
It cannot be excluded that there is a small pneumothorax. | ?ptx
Neither the effusion nor the atelectasis has changed. | +eff +atel
Neither effusion nor pneumothorax has been seen. | -eff -ptx
Right upper/middle lobe consolidation is consistent with pneumonia. | +cons
Bilateral perihilar/basilar opacities, likely edema. | +opacity
NG/OG tube is below the diaphragm. No pneumothorax. | +dev -ptx
Left chest wall pacemaker/defibrillator. | +dev
PICC in the SVC or upper right atrium, no pneumothorax. | +dev -ptx
Atelectasis or left lower lobe consolidation. | ?atel ?cons
Scarring in the lingula or atelectasis. | ?atel
Superimposed pneumonia would have to be considered. | ?pna
Nondisplaced rib fractures may be occult on this study. | ?fx
The cardiac, mediastinal and hilar contours are normal. | -heart -ecm
Heart and mediastinum WNL. Lungs clear. | -heart -ecm
Rule out pneumonia. | ?pna
CT recommended to exclude mass. | ?lesion
CT excludes a mass. | -lesion
A mass or consolidation must be excluded with CT. | ?lesion ?cons
A fracture has been ruled out. | -fx
Left upper lobe nodule, malignancy not excluded. | +lesion
Loculated left effusion, empyema cannot be excluded. | +eff
Near complete interval resolution of the left pleural effusion. | +eff
Complete interval resolution of the left pleural effusion. | -eff
Substantial clearing of the pulmonary edema, now mild. | +edema
Follow-up recommended until complete clearing of the right lower lobe pneumonia. | +pna
A follow-up study should be obtained to evaluate for resolution of the effusion. | +eff
Findings more likely represent atelectasis than consolidation. | ?cons
Clinical correlation for infection is advised. | ?pna
Interval removal of one of two right chest tubes. | +dev
Both chest tubes have been removed. | -dev
Interstitial markings are not increased. | -opacity
Interstitial markings are increased. | +opacity
Increasing left effusion, probably with some underlying atelectasis. | +eff ?atel
The nodule is not well-seen today. | ?lesion
ET tube is possibly in the right mainstem bronchus. | +dev
PICC line is not seen in its entirety but appears to end in the SVC. | +dev
"""

# What stock phrases of whole reports say of what is gone, of the other side, of the film before.
REPORTED = r"""
Interval resolution of pulmonary edema and right pleural effusion. | -edema -eff
Interval resolution of edema, and the left effusion has decreased. | -edema +eff
Interval clearing of the edema and bilateral effusions. | -edema -eff
Interval removal of the endotracheal tube and the left chest tube. | -dev
Interval removal of the chest tube and right jugular line placement. | +dev
Removal of the nasogastric tube and small left effusion. | -dev +eff
The opacity previously seen in the left base has worsened. | +opacity
The nodule previously seen now measures 8 mm. | +lesion
The effusion previously seen has resolved. | -eff
Linear scarring in the region of previously seen consolidation. | +opacity
PICC previously seen in the right atrium now terminates in the SVC. | +dev
Left effusion, decreased from previously seen. | +eff
Right pneumothorax is new, not seen on ___. | +ptx
Left lower lobe consolidation, not present on ___. | +cons
Right lower lobe opacity is not seen on the lateral. | +opacity
Pneumothorax is not seen on this radiograph. | -ptx
Normal heart, lungs, hila, mediastinum, and pleural surfaces. | -heart -ecm
Normal hilar, mediastinal and cardiac contours. | -heart -ecm
Normal lungs, enlarged heart. | +heart
Enlarged but stable cardiac silhouette. | +heart
Normal, stable heart size. | -heart
Heart size mildly enlarged, stable mediastinal contours. | +heart ?ecm
Blunting of the left costophrenic angle, consistent with a small effusion. | +eff
Blunting of the left costophrenic angle and mild cardiomegaly. | +heart
Blunting of the left costophrenic angle may reflect effusion. | ?eff
CT is recommended to evaluate for an underlying mass. | ?lesion
CT to evaluate for malignancy given the right upper lobe mass. | +lesion
Portable chest to evaluate for pneumonia shows left lower lobe pneumonia. | +pna
There is no evidence of a post procedural pneumothorax. | -ptx
No effusion post thoracentesis. | -eff
Improvement without complete resolution of right lower lobe pneumonia. | +pna
Persistent small left and resolved right pleural effusion. | +eff
Pleural effusion is small on the right, and absent on the left. | +eff
Effusion has resolved on the right but persists on the left. | +eff
The right effusion has resolved and the left has decreased. | +eff
The right effusion has resolved and the heart is enlarged. | -eff +heart
Consider removal of the PICC. | +dev
The nasogastric tube should be removed. | +dev
The nasogastric tube was removed. | -dev
In the absence of fever, atelectasis is present. | +atel
Costophrenic angle is not included, limiting evaluation for effusion. | ?eff
Evaluation is limited for subtle rib fracture. | ?fx
No longer visualized is the left pneumothorax. | -ptx
The patient no longer has a pneumothorax. | -ptx
Nasogastric tube has been discontinued. | -dev
Small pneumothorax has been replaced by pleural fluid. | -ptx +eff
Small right pneumothorax, which has resolved. | -ptx
Small effusion, which has decreased. | +eff
Following removal of the chest tube a small pneumothorax has developed. | -dev +ptx
Removal of the chest tube resulted in a small pneumothorax. | -dev +ptx
Heart is at the upper limits of normal in size or slightly enlarged. | ?heart
Status post cardiac catheterization, no pulmonary edema. | -edema ~dev
Calcification of the aortic valve, no effusion. | -eff ~dev
Aortic valve replacement, no effusion. | +dev -eff
End plate sclerosis, no effusion. | -eff ~dev
Repeat with nipple markers. No effusion. | -eff ~dev
Fractured sternal wires, no rib fractures. | -fx
Biapical pleural-parenchymal scarring. | +pleura
"""

KINDS = (WHOSE, DOUBT, LONG, SHARED, PLAINER, ENDS, CHANGE, ORGANS, WORDS, TURNS, READ, REPORTED)


@pytest.mark.parametrize("line", [line for kind in KINDS for line in kind.strip().split("\n")])
def test_whose(line):
    """Each sentence says what a reader would say it does."""
    check(*line.rsplit(" | ", 1))
