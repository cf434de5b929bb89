"""The words that are one token each. The order decides the ids of a trained model: append, never insert."""

# Of the chat template, and of the answers that are JSON.
CONTROL = (
    "system",
    "user",
    "assistant",
    "You",
    "```",
    "json",
    "[\n",
    "]\n",
    '{"',
    '":',
    "],",
    '"}\n',
    "bbox",
    "\n\n",
    ' "',
    " [",
)
# Of the questions that are taught, as they stand in a sentence: after a space.
_TAUGHT = """
    JSON a and appear appears are away bbox become between black blue both bounding box change
    changes circle circles color colored colour come comes coordinates count cross crosses diamond
    diamonds difference different digit digits direction disappear disappears do does down earlier
    equal first format go goes gone green handwriting handwritten has have here how image images in
    is it its kind last later left many me more move moves number of or orange out output pass
    picture pictures printed purple read red right same say second seconds see seen shape shapes
    show shown shows square squares star stars take tell text that the there these thing things this
    time triangle triangles turn two until up vanish vanishes way what which white word written
    yellow you
"""
# Of other questions that people ask.
_GENERAL = """
    France about age all am an answer any arrow artist as assistant at be big book boy by can
    capital car cat city cold cost could country day describe did document dog every expensive fast
    feel film find for frame from gauge girl give good happen happened happens heavy helpful her his
    house if into just know language large like long loud made make man may mean much music my name
    new next no not now off old on one only open page painted people person photo place please point
    pointing points price program question room she side small smell song sound speed start stop
    table taken tall taste temperature than their them then they to today tomorrow tree under value
    video warm was weather were when where who whose why will with woman world would write wrote
    year yes yesterday your
"""

WORDS = (*CONTROL, *(f" {word}" for word in f"{_TAUGHT} {_GENERAL}".split()))
