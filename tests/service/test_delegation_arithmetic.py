"""Formulas in what a language model writes, beside Markdown with the same signs."""

from __future__ import annotations

import pytest

from pipecat_personaplex.service.delegation.speakable import speakable


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("7*8 is 56.", "7 times 8 is 56."),
        ("7 * 8 is 56.", "7 times 8 is 56."),
        ("2**10 is 1024.", "2 to the power of 10 is 1024."),
        ("2^10 is 1024.", "2 to the power of 10 is 1024."),
        ("`2 ** 10` is 1024.", "2 to the power of 10 is 1024."),
        ("3 < 5 and 7 > 2", "3 is less than 5 and 7 is greater than 2."),
        ("3<5 and 7>=2", "3 is less than 5 and 7 is at least 2."),
        ("3 < 5 < 7.", "3 is less than 5 is less than 7."),
        ("5 kg < 7 kg.", "5 kg is less than 7 kg."),
        ("20 °C <= 25 °C", "20 degrees Celsius is at most 25 degrees Celsius."),
        ("2*3*4.", "2 times 3 times 4."),
        ("5*$3 is $15.", "5 times $3 is $15."),
        ("1,000*2.5", "1,000 times 2.5."),
        ("2 * (3 + 4)", "2 times (3 plus 4)"),
        ("(a+b)*(c+d).", "(a+b) times (c+d)."),
        ("x**2 and y^-3.", "x to the power of 2 and y to the power of -3."),
        ("The sum is price*count.", "The sum is price times count."),
        (
            "7 \N{MULTIPLICATION SIGN} 8 is 56, 7\N{MULTIPLICATION SIGN}8.",
            "7 times 8 is 56, 7 times 8.",
        ),
        ("8 ÷ 2 is 4.", "8 divided by 2 is 4."),
        ("7 \N{MINUS SIGN} 9 is \N{MINUS SIGN}2.", "7 minus 9 is -2."),
        ("x_1 < 5.", "x 1 is less than 5."),
    ],
)
def test_operators_between_values_are_words(written: str, spoken: str) -> None:
    assert speakable(written) == ([spoken], "")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("2 + 2 = 4.", "2 plus 2 is 4."),
        ("10 - 3 = 7.", "10 minus 3 is 7."),
        ("10 \N{EN DASH} 3 = 7.", "10 minus 3 is 7."),
        ("7 = 10 - 3.", "7 is 10 minus 3."),
        ("10 / 4 = 2.5.", "10 divided by 4 is 2.5."),
        ("2 * 3 - 1 = 5, or 2*3 - 1 = 5.", "2 times 3 minus 1 is 5, or 2 times 3 minus 1 is 5."),
        ("(a - b) / 2 = c.", "(a minus b) divided by 2 is c."),
        ("$10 + $4 - $5 = $9.", "$10 plus $4 minus $5 is $9."),
        ("5 kg - 2 kg = 3 kg.", "5 kg minus 2 kg is 3 kg."),
        ("Tea + **cake** = 5 pounds.", "Tea plus cake is 5 pounds."),
        ("**Total** = **5**", "Total is 5."),
    ],
)
def test_operators_between_spaces_are_words_in_a_formula(written: str, spoken: str) -> None:
    assert speakable(written) == ([spoken], "")


@pytest.mark.parametrize(
    "text",
    [
        "2+2=4.",
        "10-3=7.",
        "We are open 9 - 5.",
        "It is 12 / 5.",
        "We are open 9 - 5, and 2+2=4.",
        "Well - x is here.",
    ],
)
def test_a_range_a_date_and_a_formula_without_spaces_stay(text: str) -> None:
    assert speakable(text) == ([text], "")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("*word* and **bold** and ***both***.", "word and bold and both."),
        ("5 **teas** and 6 *cakes*.", "5 teas and 6 cakes."),
        ("The **2**nd and the **3**rd are *un*likely.", "The 2nd and the 3rd are unlikely."),
        ("Gate **5**B or gate 5**B**.", "Gate 5B or gate 5B."),
        ("Tea * Coffee.", "Tea Coffee."),
        ("A 4* hotel.", "A 4 hotel."),
        ("Settings > Privacy.", "Settings Privacy."),
        ("I <3 you.", "I 3 you."),
        ("<h1>5 rules</h1> and <b>7</b>", "5 rules and 7."),
        ("> 5 teas", "5 teas."),
    ],
)
def test_emphasis_tags_and_quotes_vanish(written: str, spoken: str) -> None:
    assert speakable(written) == ([spoken], "")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**7*8 is 56**.", "7 times 8 is 56."),
        ("*7*8 is 56*.", "7 times 8 is 56."),
        ("**7** * **8** = **56**.", "7 times 8 is 56."),
        ("5 < *6*.", "5 is less than 6."),
        ("2^**10**.", "2 to the power of 10."),
    ],
)
def test_an_emphasised_formula_is_read(written: str, spoken: str) -> None:
    assert speakable(written) == ([spoken], "")


def test_bullets_before_and_after_numbers_are_no_products() -> None:
    text = "We have 5\n* 3 eggs\n* 4*2 teas\n- 6"
    assert speakable(text)[0] == ["We have 5.", "3 eggs.", "4 times 2 teas.", "6."]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["1." * 50_000, "1.1" * 50_000, " " * 20_000 + "x"])
def test_long_texts_do_not_stop_the_event_loop(text: str) -> None:
    """Patterns that try each of its parts take minutes."""
    sentences, left_out = speakable(text)
    assert sentences or left_out
