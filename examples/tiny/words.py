"""What is printed in the pictures: everyday words, made-up words, strings of letters, and numbers."""

from __future__ import annotations

import random
import string

LONGEST = 8  # characters

_WORDS = """
able about above accept across action active actor advice afraid after again age agree air airport
alarm album alive all alone also always amber among angle animal ankle answer ant anyone apple april
apron arch area arm army around arrive arrow art ash ask aunt august autumn away baby back bacon bad
badge bag bake baker balcony ball banana band bank bar barn basket bath battery beach bean bear beard
beauty bed bee beef before begin behind bell below belt bench berry best better between bicycle big
bike bill bird birth biscuit bit bitter black blade blanket blind block blood blossom blue board boat
body boil bone book boot border bottle bottom bowl box boy brain branch brave bread break bridge
bright bring broken brother brown brush bucket build bus busy butcher butter button buy cabin cable
cafe cake call calm camel camera camp canal candle cap captain car card careful carpet carrot carry
castle cat catch cave ceiling cellar centre chain chair chalk chance change cheap check cheese cherry
chess chicken child chin church circle city class clean clear clever climb clock close cloth cloud
clown club coach coast coat coffee coin cold collar colour comb common cook cool copper coral corn
corner cotton count country cousin cover cow cream cross crowd crown cup curtain customs cycle daily
dance danger dark date day deal dear december deep deer delta dentist desert desk diamond dinner dirty
dish doctor dog dollar dolphin donkey door double down dozen dragon draw dream dress drink drive drum
dry duck dust eagle ear early earth east easy eat echo edge egg eight elbow eleven empty end engine
enjoy enter evening every exit eye face fact family famous farm fast father feather february fence
field fig film find finger finish fire first fish five flag flame flat flight floor flour flower flute
fog fold food foot forest fork forty forward four fox free fresh friday friend frog front frost fruit
full funny garage garden garlic gate gentle ghost giant gift ginger giraffe girl give glad glass glove
goat gold good goose grain grape grass great green grey ground group guard guest guide guitar hair
half hall hammer hand happy harbour hard hat hay head health hear heart heavy heel height hello help
here hero hidden high hill history hold hole holiday home honey hope horse hospital hot hotel hour
house how human hundred hungry hurry ice idea inch insect inside iron island ivory jacket jam january
jar jazz job join joke journey judge juice july jump june jungle just keen keep kettle key kind king
kiss kitchen kite knee knife knock know label lady lake lamb lamp land large last late laugh law lazy
leaf learn leather leave left leg lemon less letter level library life lift light lime line lion list
little live lock lonely long look lorry lost loud love low lucky lunch machine magic mail main make
map maple march market mask match meadow meal measure meat medal melon member metal middle milk mill
mind minute mirror monday money monkey month moon morning moth mother mountain mouse mouth move much
museum music nail name narrow nature near neck needle nest never new news next nice night nine nobody
noise noon north nose notice november number nurse oak ocean october off office often oil old olive
once one onion only open orange orchard order other oven over owl page paint palace palm pan paper
parcel park parrot part party path peach peanut pear pencil people pepper perfect person petrol photo
piano picnic picture piece pig pillow pilot pink pipe pirate pizza place plane planet plate play plum
pocket poem point polar police pond pony post potato pound powder price prince private prize public
pull pupil puppy purple purse push puzzle queen quick quiet quite rabbit radio rail rain rainbow read
ready red rest rice rich ride right ring river road robin robot rock rocket roof room root rope rose
round row royal rubber ruler run safe sail salad sale salt same sand sauce scarf school science sea
seat second secret see seed seven shade shadow shape shark sharp sheep shelf ship shirt shoe shop
short show sign silk silver simple sing sister six skin sky sleep slow small smile smoke snake snow
soap soft soldier song soup south space spell spider spoon sport spring square stamp star start
station stay steam steel stick stone stop storm story strong student sugar suit summer sun sunday
supper sweet swim table tail tea teacher team ten tent test thank theatre thin third thirty thirsty
three thunder thursday ticket tiger time tin today toilet tomato tomorrow tongue tool tooth top towel
tower town toy track tractor train tram travel tree trip true try tuesday tulip tunnel turkey turn
turtle twelve twenty two uncle under until upper use valley vase velvet very village violet violin
visit voice wagon wait walk wall walnut warm wash watch water weather week welcome well west wet whale
wheat wheel white wide wild win wind window wine winter wise wolf woman wonder wood wool word work
world worm write wrong yard year yellow yes young zebra zero zoo
"""
WORDS = tuple(_WORDS.split())
STARTS = (*"bdfghklmnprstvwz", "br", "st", "tr", "ch", "sh", "gr", "pl")
# Letters whose small and capital forms differ by size alone: nobody can tell a lone "s" from a lone "S".
SIZE_ALONE = frozenset("ckopsuvwxyzCKOPSUVWXYZ")
LOOK_ALIKE = frozenset("Il1O0o")  # never in one string without sense


def has_readable_case(text: str) -> bool:
    """Whether small letters can be told from capitals: one form is certain, or sizes can be compared."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters:
        return True
    return any(c not in SIZE_ALONE for c in text) or len({c.islower() for c in letters}) == 2


def _in_some_case(word: str, rng: random.Random) -> str:
    return rng.choice((word, word.capitalize(), word.upper()))


def word(rng: random.Random) -> str:
    return _in_some_case(rng.choice(WORDS), rng)


def made_up(rng: random.Random) -> str:
    """A word that can be spoken and does not exist, or hardly."""
    syllables = []
    for _ in range(rng.randint(1, 3)):
        start, vowel = rng.choice(STARTS), rng.choice("aeiou")
        syllables.append(start + vowel + rng.choice(["", "", "", "n", "r", "l", "s", "t", "m", "x"]))
    return _in_some_case("".join(syllables)[:LONGEST], rng)


def letters(rng: random.Random) -> str:
    """One to five letters without sense: small, capital, or mixed with other characters."""
    alphabet = rng.choice(
        (string.ascii_uppercase, string.ascii_lowercase, string.ascii_letters + string.digits)
    )
    if alphabet[-1] == "9":
        alphabet = "".join(c for c in alphabet if c not in LOOK_ALIKE)
    length = rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 5))
    return "".join(rng.choice(alphabet) for _ in range(length))


def number(rng: random.Random) -> str:
    """A number of one to six digits; many are years."""
    if rng.random() < 0.25:
        return str(rng.randint(1800, 2099))
    return "".join(rng.choice(string.digits) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6))))


KINDS = {
    "word": (word, 0.4),
    "made-up word": (made_up, 0.14),
    "letters": (letters, 0.2),
    "number": (number, 0.26),
}


def printed(rng: random.Random) -> tuple[str, str]:
    """What kind of text, and the text, 1 to 8 characters."""
    kind = rng.choices([*KINDS], [share for _, share in KINDS.values()])[0]
    while True:
        text = KINDS[kind][0](rng)
        if has_readable_case(text) and text not in ("I", "l"):
            return kind, text
