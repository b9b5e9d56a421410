"""Random sentences for the codec, so that it learns voices and not the script."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from training.nano import facts
from training.nano.names import HELD_OUT_NAMES, NAMES

_T = TypeVar("_T")

WORDS = """
a able about above absolutely across act actually add added adding address adult advice afraid after
afternoon again age ago agree ahead air all almost alone along already also although always am
amount an and angry animal another answer any apple april are arm around arrive arrived art as ask
at august aunt autumn away baby back bag bake ball band bank bar basket bath bathroom be bean
beautiful became because become bed bedroom beer before began begin behind believe belong below
bench beside best better between bicycle big bill bird birthday bit bitter black blue boat body book
both bottle bottom bowl box bread break breakfast bridge bright bring broken brother brought brown
brush build building burger burn bus busy but butter button buy by cake call calling calls calm came
camera can car card careful carry cash cat catch caught center cents certain certainly chair chance
change cheap check cheese chicken child chocolate choice church cinema circle city clean clear
clever climb clock close closed closes closing clothes cloud coat coffee coffees coin cold color
come comfortable coming common company complete computer cook cookie cool corner correct cost costs
could count country cousin cream crowd cry cup customer cut daily dance danger daughter day dear
december decide deep delicious deliver delivery desk dessert did different dinner dirty do doctor
dog dollar dollars done door double doubt down dream dress drink drinks drive driver drop dry during
dust duty each ear early earth east eastern easy eat egg eggs eight eighteen eighty either elephant
eleven else email empty end english enjoy enough enter entrance even evening evenings every exactly
exam example except exit expect expensive explain extra eye eyes face fact fair fall family famous
far farmer fast father favorite february feel feet fell fence few field fifteen fifty fight figure
fill film final find finger finish fire first fish fit five floor flower fly follow food foot for
forest forget forgot fork form forty forward found four fourteen free fresh friday fried friend from
front fruit full game garden gate gave gentle get gift girl give glad glass go goes going gold good
goodbye grandmother grape grass gravity gray great green ground group grow guess guest guide had
hair half hall hand hang happen happy hard has hat have he head hear heart heat heavy help her here
high hill him his history hit hole holiday home honey hope horse hospital hot hotel hour house how
however hundred hungry hurry husband ice idea if important in inside instead interesting is island
it jacket jalapeno january job join juice july jump june just keep kept key kilometer kind king
kitchen knew knife know ladder lake lamp land language large last late later laugh leaf learn leave
leaves left leg lemon lend less let letter level library lie life light like line listen little live
lives lock long look lost love low lucky lunch machine made main make makes man many map march
market matter may me measure meat medium meeting member menu middle mild milk mind mine minute
minutes miss mistake moment monday money month moon more morning most mother mountain mouse mouth
move much museum mushroom music must my name napkin narrow natural near nearly necessary neck need
needed neighbor never new newspaper next nice night nine nineteen ninety no nobody noise none noon
normal north nose not nothing notice november now number nurse object ocean october of off offer
office often oil old olive on once one ones onion only onto open opens operator opposite or orange
order orders ordinary other our out outside oven over own oxygen package page paid paint pair pan
paper parent park parking part party pass past path patient pay pen pencil people pepper percent
perfect perhaps person phone photo pick picture pie piece pink pizza place plain plan planet plant
plate play pleasant please pleasure plenty poach pocket point police polite pool poor possible post
potato potatoes pound power prefer present press pressure pretty price private probably problem
promise proud public pull purple push quarter queen question quick quiet quite radio railway rain
rather reach read ready real receipt receive recipe red remember repeat reply reservation rest
restaurant return rice rich ride right ring rise river road rock roof room rose round rule run sad
safe said salad salads salt same sand sandwich saturday sauce save saw say school scissors sea
season seat second see send september serious serve service seven seventeen seventy several
shakshuka shape share she shelf ship shirt shoe shop short should shoulder show shower shut sick
side sign silver simple since sing sister sit six sixteen sixty size skill skin sky sleep slow small
smile snow so soap soft soldier some somebody something sometimes son song soon sorry sort sound
soup south space speak special spell spend spent spicy spoon spring square stairs stand star start
state station stay steak step stick still stomach stone stop store story straight strange strawberry
street strike string strong student study such sugar summer sun sunday supermarket supper sure
surprise sweet swim system table tables take talk tall taste taxi tea teach teacher telephone tell
ten tenth than thank that the theater their them then there these they thick thin thing things think
third thirteen thirty this thought thousand three through thursday ticket tie time tiny tired to
toast today together tomato tomatoes tomorrow tonight too tool tooth top touch tour toward town
traffic train travel treat tree trip trouble truck true try tuesday turn twelve twenty two type
umbrella uncle under understand uniform university until up upstairs us use useful usual usually
vanilla vegetable vegetarian very view village visit visitor voice wait waiter waiting wake walk
wall want warm was wash washed watch water way we weather wednesday week weekend weight welcome well
went were west wet what wheel when where which while white who whole why wife will wind window wing
winter wise with without woman women wonder wood word work world would write wrong yard year yellow
yes yesterday yogurt you young your yourself zero
""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
# {w} stands for any word; the other fields for a value of theirs.
FORMS = (
    *("The {w} costs {price}.", "A {w} and a {w} are {price}.", "Is {price} too much for a {w}?"),
    *("Your {w} comes at {time}.", "I will be at the {w} until {time}.", "On {day} it is {time}."),
    *("{name} wants a {w} with {w}.", "Ask {name} about the {w}.", "This is {name}, not {name}."),
    *("The {w} is on {street}.", "Go down {street} to the {w}.", "{day} or {day}?"),
    *("I have {number} {w} for you.", "It was {number} or {number}.", "{name} {w} on {day}."),
    *("We would like the {w} {w}, please.", "There is no {w} in our {w}.", "Do you {w} a {w}?"),
)
_FORM_SHARE = 0.5


def _fill(form: str, random: np.random.Generator) -> str:
    def one(values: Sequence[_T]) -> _T:
        return values[int(random.integers(len(values)))]

    choices: dict[str, Callable[[], str]] = {
        "w": lambda: one(WORDS),
        "price": lambda: one(facts.PRICES).spoken,
        "time": lambda: one(facts.TIMES).spoken,
        "street": lambda: one(facts.STREETS).spoken,
        "number": lambda: facts.number_words(int(random.integers(1, 1000))),
        "name": lambda: one((*NAMES, *HELD_OUT_NAMES)),
        "day": lambda: one(DAYS),
    }
    return re.sub(r"\{(\w+)\}", lambda field: choices[field[1]](), form)


def sentence(random: np.random.Generator) -> str:
    """A few random words, with names, prices, times, streets and numbers in half of the sentences.

    Nobody would say it; it has the sounds of many words, one after the other.
    """
    if random.random() < _FORM_SHARE:
        text = _fill(FORMS[int(random.integers(len(FORMS)))], random)
        return text[0].upper() + text[1:]
    words = [str(word) for word in random.choice(WORDS, random.integers(3, 10))]
    if random.random() < 0.3:
        words[len(words) // 2] += ","
    return " ".join(words).capitalize() + str(random.choice([".", ".", "?", "!"]))
