"""labels.py: shorthand and markup, sentence by sentence, each kind with what only looks like it. Lines as in
test_sentences.py."""
import itertools

import pytest
from test_sentences import check

from chests.labels import LABELS, label
from chests.reports import sections

# A list that is denied as a whole, to the end of its sentence; and what is no such list.
NONE_OF = r"""
None of the following: effusion, pneumothorax. | -eff -ptx
None of the following: pneumonia, edema, small left effusion, or right rib fracture. | -pna -edema -eff -fx
None of the following is seen: pneumothorax; effusion; consolidation. | -ptx -eff -cons
None of these are present: mass, nodule > 0.5 cm and consolidation. | -lesion -cons
There is none of the following: enlarged heart, edema. Chest tube in place. | -heart -edema +dev
No evidence of any of the following: fracture, pneumothorax, left effusion. | -fx -ptx -eff
Negative for the following: pneumonia, stable effusion. | -pna -eff
NONE OF THE FOLLOWING: PNEUMOTHORAX, EFFUSION/EDEMA. | -ptx -eff -edema
None of the following: effusion, pneumothorax, but mild edema is present. | -eff -ptx +edema
None of the following\n- effusion, pneumothorax | ~dev
None of the following has changed: effusion, atelectasis. | +eff +atel
No change in the following: left effusion, cardiomegaly. | +eff +heart
The following are present: effusion, atelectasis. | +eff +atel
Cannot exclude any of the following: pneumonia, effusion. | ?pna ?eff
None of the tubes have moved: small effusion. | +eff
No comparison: small effusion, mild edema. | +eff +edema
Findings: none of the following: effusion, pneumothorax. | -eff -ptx
No evidence of: effusion, pneumothorax. | -eff -ptx
Negative for: pneumonia, small effusion; edema. | -pna -eff -edema
The chest does not show any of the following: fracture, widened mediastinum. | -fx -ecm
Neither of the following: pneumothorax, effusion. | -ptx -eff
None of the following: infiltrates, pleural thickening or fluid. Mild cardiomegaly. | -opacity -pleura +heart
There are none of these findings: atelectasis, nodules, or masses; lines or tubes. | -atel -lesion -dev
One of the following: pneumonia, edema. | +pna +edema
No prior for comparison: small effusion. | +eff
Could not exclude the following: pneumonia, effusion. | ?pna ?eff
Effusion: none. Edema: none seen. Fracture: old. | -eff -edema +fx
No change from the following: left effusion. | +eff
None of the following:\nEffusion\nEdema\nPneumothorax | -eff -edema -ptx
None of the following:\n- effusion\n- mild edema\n- pneumothorax | -eff -edema -ptx
None of the following is seen:\n\n* Effusion.\n* Edema.\n\nSmall nodule. | -eff -edema +lesion
No evidence of:\n1. Consolidation;\n2. pneumothorax\nThe heart is enlarged. | -cons -ptx +heart
None of the following:\n• left effusion,\n• rib fracture\nSmall nodule in the right lung. | -eff -fx +lesion
None of the following:\nEffusion\nEdema\nA small nodule is seen. | -eff -edema +lesion
NONE OF THE FOLLOWING:\nEFFUSION\nEDEMA\nIMPRESSION: NODULE | -eff -edema +lesion
None of these:<ul><li>effusion</li><li>fracture</li></ul>Chest tube in place. | -eff -fx +dev
The following are present:\n- effusion\n- edema | +eff +edema
There is:\n- small effusion\n- no edema | +eff -edema
"""

# A lone "v" is "versus", a numeral is not.
V = r"""
Pneumonia v atelectasis. | ?pna ?atel
Pneumonia v. atelectasis. | ?pna ?atel
Left basilar opacity, atelectasis v pneumonia. | +opacity ?atel ?pna
PNEUMONIA V ATELECTASIS | ?pna ?atel
Small effusion v pleural thickening, no pneumothorax. | ?eff ?pleura -ptx
Old rib fracture v artifact. | ?fx
Atelectasis, v. early consolidation at the left base. | ?atel ?cons
Skin fold v pneumothorax at the right apex. | ?ptx
Scar v nodule; no effusion. | ?opacity ?lesion -eff
Pneumonia v\natelectasis. | ?pna ?atel
Consolidation in segment V. | +cons
Segment V consolidation. | +cons
Segments IV, V and VI show consolidation. | +cons
Salter-Harris V fracture. | +fx
Grade V fracture of the sixth rib. | +fx
Type v fracture. | +fx
Pacemaker V lead in place. | +dev
IV line in place. | +dev
I V catheter in place. | +dev
There is a v. small effusion. | +eff
Nodule near rib V. Effusion. | +lesion +eff
Cranial nerve V mass. | +lesion
Edema v infection v aspiration. | ?edema ?pna
Effusion v. mass, no edema. | ?eff ?lesion -edema
No effusion; atelectasis v scar at the left base. | -eff ?atel ?opacity
V. small effusion. | +eff
Ribs V and VI: fractures. | +fx
Atrial and V leads, pacemaker intact. | +dev
V/Q scan advised, small effusion. | +eff
"""

# Plus and minus, glued to a finding at the start of an item; and dashes, ranges, grades.
SIGNS = r"""
+effusion, -pneumothorax | +eff -ptx
-pneumothorax, +effusion. | -ptx +eff
-pneumothorax, -effusion, -edema. | -ptx -eff -edema
+ pneumonia, -effusion | +pna -eff
Findings: +effusion, -pneumothorax, -fracture | +eff -ptx -fx
No fracture, +small effusion, -pneumothorax. | -fx +eff -ptx
+edema; -consolidation; -large effusion. | +edema -cons -eff
+effusion\n-pneumothorax\n-edema | +eff -ptx -edema
+effusion -pneumothorax | +eff -ptx
Chest film (+cardiomegaly, -edema). | +heart -edema
–pneumothorax, +left effusion | -ptx +eff
+Effusion,-Pneumothorax,-Edema | +eff -ptx -edema
-effusion or pneumothorax, +edema | -eff -ptx +edema
+effusion/-pneumothorax | +eff -ptx
-Small effusion\n-Mild edema | +eff +edema
-Effusion\n-Pneumothorax | +eff +ptx
-Effusion. | +eff
C5-C6 effusion, small. | +eff
C5 -C6 fracture, +effusion. | +fx +eff
Post-surgical effusion, mild-moderate edema. | +eff +edema
Grade 2+ edema, small effusion. | +edema +eff
2+ edema, 1+ effusion, no pneumothorax. | +edema +eff -ptx
Effusion +/- atelectasis. | ?eff ?atel
Left- and right-sided effusions. | +eff
Effusion - small, atelectasis - mild. | +eff +atel
Air-space opacity, pre-existing. | +opacity
"""

# A bare answer behind a semicolon is the form's; a clause of its own is not.
SEMICOLONS = r"""
Effusion; no | -eff
Pneumothorax; none | -ptx
Effusion; no. Pneumothorax; no. | -eff -ptx
Effusion;no;edema;yes | -eff +edema
Consolidation; absent. Edema; present. | -cons +edema
Fracture; negative | -fx
Pneumonia; not seen. | -pna
Effusion; none seen. | -eff
Effusion; small. Pneumothorax; n. | +eff -ptx
Small left effusion, pneumothorax; none. | +eff -ptx
Effusion; resolved. | -eff
Pneumonia; possible. Effusion; unlikely. | ?pna ?eff
Effusion ; no , edema ; mild | -eff +edema
Cardiomegaly; 0. Nodule; 1. | -heart +lesion
Small effusion; no pneumothorax. | +eff -ptx
Small effusion; no pneumothorax? | +eff
Effusion; no change. | +eff
Edema; nothing else. | +edema
Small effusion; not significantly changed. | +eff
Effusion; none of the others. | +eff
Mild edema; no longer any effusion. | +edema -eff
Nodule; 0.8 cm. | +lesion
Effusion; not large. | +eff
Effusion; no old films. | +eff
Heart; normal. Mediastinum; widened. | -heart +ecm
Effusion; no evidence. | -eff
Effusion; no\nEdema; mild | -eff +edema
Effusion: no\nMild edema. | -eff +edema
Effusion: no\n\nMild edema. | -eff +edema
No\nPneumothorax. | -ptx
Effusion: small; pneumothorax: none; edema; no | +eff -ptx -edema
Lines and tubes; none. Rib fracture; questionable. | -dev ?fx
Edema; mild. Effusion; trace. | +edema +eff
Small effusion; heart normal. | +eff -heart
"""

# Tags, entities and asterisks are no part of the text; "smaller than" is.
MARKUP = r"""
<b>Pneumothorax:</b> none | -ptx
Effusion: <i>no</i> | -eff
Effusion: <i>no</i>, edema: <b>mild</b> | -eff +edema
<p>No pneumothorax</p><p>Small effusion</p> | -ptx +eff
No focal<br>consolidation. | -cons
<tr><td>Pneumothorax</td><td>none</td></tr><tr><td>Edema</td><td>mild</td></tr> | -ptx +edema
<span style="color:red">Pneumothorax</span>: <b>NO</b><br/>Effusion: small | -ptx +eff
<ul><li>Effusion: none</li><li>Edema</li></ul> | -eff +edema
Pneumothorax:&nbsp;none. Effusion &amp; edema. | -ptx +eff +edema
&lt;b&gt;Pneumothorax:&lt;/b&gt; none | -ptx
**Pneumothorax:** none, **effusion:** small | -ptx +eff
Effusion: **no** | -eff
Pneumothorax <b>(-)</b> | -ptx
Nodule <5 mm, effusion >3 cm, no edema. | +lesion +eff -edema
Nodule <b and >a; small effusion. | +lesion +eff
No nodule <6 mm. Effusion > 2 cm. | -lesion +eff
<effusion> | +eff
No effusion -> edema. | -eff
* Effusion\n* No edema | +eff -edema
<p>Effusion: no</p><p>Mild edema.</p> | -eff +edema
<strong>Effusion</strong> - <em>none</em> | -eff
<B>EFFUSION:</B> NO | -eff
<b>No</b> pneumothorax, <b>small</b> effusion. | -ptx +eff
<a href="x.html">Effusion</a>: <b>absent</b> | -eff
<div class="x">No pneumothorax or\neffusion</div> | -ptx -eff
Can&#8217;t exclude pneumonia. | ?pna
A < B; effusion > 2 cm <b | +eff
"""

# Lines without a point; what was, told beside what is; abbreviations with a slash; disease without a label.
LINES_AND_WORDS = r"""
NO PNEUMOTHORAX\nSMALL LEFT EFFUSION\nCARDIOMEGALY | -ptx +eff +heart
no pneumothorax\nsmall left effusion\ncardiomegaly | -ptx +eff +heart
> No effusion\n> Mild edema | -eff +edema
No evidence of pneumothorax,\neffusion or edema. | -ptx -eff -edema
Small b/l pleural effusions. | +eff
Right effusion d/t pneumonia. | +eff +pna
Mild/mod pulmonary edema. | +edema
The effusion that was seen previously is no longer present. | -eff
The left pneumothorax, which was small, has resolved. | -ptx
The effusion that was drained has recurred. | +eff
The heart, which was enlarged, is now normal. | -heart
The heart is smaller but remains enlarged. | +heart
Mediastinum is stable but widened. | +ecm
Negative findings: pneumothorax, consolidation. | -ptx -cons
The following are absent: effusion, edema. | -eff -edema
(+) effusion (-) pneumothorax | +eff -ptx
Left CVL in place. | +dev
Bilateral bronchiectasis. | ~normal
Elevated right hemidiaphragm. | ~normal
Thoracic aortic aneurysm. | ~normal
Chest tube tip projects outside the thoracic cavity. | +dev +normal
"""

KINDS = (NONE_OF, V, SIGNS, SEMICOLONS, MARKUP, LINES_AND_WORDS)


@pytest.mark.parametrize("line", [line for kind in KINDS for line in kind.strip().split("\n")])
def test_shorthand(line):
    """Each sentence says what a reader would say it does."""
    check(*line.split(" | "))


def test_sections_are_without_markup():
    """Headers are found behind tags, and no tag stays in what a prompt is made of."""
    parts = sections("<p><b>Findings:</b> Heart &gt; normal.<br>Small <i>left</i> effusion</p>"
                     "<p><b>Impression:</b>Edema.</p>")
    assert parts["findings"] == "Heart > normal. Small left effusion"
    assert parts["impression"] == "Edema."


@pytest.mark.parametrize("sign", [": {}", ":{}", "={}", "? {}", " | {}", " - {}", "; {}"])
@pytest.mark.parametrize("joint", [", ", "; ", ". ", " | ", " / ", " "])
def test_a_form_is_read_answer_by_answer(sign, joint):
    """Effusion: yes | Edema: none. Each answer is of the finding before it, whatever marks and joins them."""
    if joint == " " and sign in (" | {}", " - {}", "; {}"):
        pytest.skip("nothing tells where an item ends")
    for yes, no in itertools.product(("yes", "+", "present", "small"), ("no", "-", "absent", "0", "None")):
        form = [f"Effusion{sign.format(yes)}", f"Edema{sign.format(no)}"]
        for items in (form, form[::-1]):
            values = dict(zip(LABELS, label(joint.join(items)), strict=True))
            assert (values["Pleural Effusion"], values["Edema"]) == (1, 0), joint.join(items)
