"""Random sentences for the codec, so that it learns voices and not the script."""

from __future__ import annotations

import numpy as np

WORDS = """
a about above after again air all almost along also always am an and animal another answer any are
around as ask at autumn away back bake bank be because bed before began below best better between
big bird black blue boat body book both bread breakfast bring broken brother build busy but butter
buy by call came can car card carry cash cat change cheap check cheese child choice city clean
close cloud coffee cold color come cook cool could count country cream cup cut dance day deep did
different dinner do dog dollar done door down dream drink drive each ear early earth east easy eat
egg eight end enough even evening every eye face fall family far fast father few field fifty find
fire first fish five flower fly food foot for forest found four fresh friend from front fruit full
game garden gave get girl give glad go gold good grape gravity great green ground group grow had
half hand happy hard has have he head hear heart heavy help her here high him his history hot hour
house how hundred ice idea if important in is island it jalapeno job join juice jump just keep key
kind king know lamp land language large last laugh learn leave left lemon less let letter life
light like line listen little live long look lost love low lunch machine made make man many map
matter may me measure meat menu milk mind minute money month moon more morning most mother mountain
mouth move much music must my name near need never new next nice night nine no north nose not
notice now number ocean of off often oil old olive on once one onion only open or orange order
other our out over oxygen page paint paper parent part pay people pepper perfect photo piece place
plan planet plant play please point poach potato power pressure pretty price problem pull question
quick quiet rain reach read ready real red remember rest restaurant rice rich right river road rock
room round run said salad salt same sand sauce save say school sea season second see send serve
seven shakshuka shape share she ship shop short should show side simple sing sister sit six skin
sky sleep slow small smile snow so soap some song soon sorry soup south space speak spell spicy
spoon spring stand star start state stay step still stone stop store story street strong student
study such sugar summer sun sure sweet swim table take talk tall tea teach teacher ten than thank
that the their them then there these they thing think third this thought thousand three through
time tiny to today together tomato tomorrow too top toward town travel tree true try turn twelve
twenty two under until up us use usual vegetable very view village visit voice wait walk wall want
warm was wash watch water way we weather week welcome well went were west what wheel when where
which while white who why will wind window winter wise with wonder wood word work world would write
yard year yellow yes yesterday yogurt you young your zero
""".split()
_NAMES = "Owen Foster Alice Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Maya".split()


def sentence(random: np.random.Generator) -> str:
    """Three to nine random words, sometimes with a name, a price or a pause."""
    words = [str(word) for word in random.choice(WORDS, random.integers(3, 10))]
    if random.random() < 0.2:
        words[int(random.integers(len(words)))] = str(random.choice(_NAMES))
    if random.random() < 0.15:
        words.append(f"{random.integers(1, 30)} dollars")
    if random.random() < 0.3:
        words[len(words) // 2] += ","
    return " ".join(words).capitalize() + str(random.choice([".", ".", "?", "!"]))
