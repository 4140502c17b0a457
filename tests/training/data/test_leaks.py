"""Training documents that hold text of validation sets."""

import random
from collections.abc import Iterator

import pytest

from training.data import leaks
from training.record.errors import InputError

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def document(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


@pytest.fixture(scope="module")
def sets() -> dict[str, list[list[str]]]:
    """Two sets in batches: long documents, and some that are shorter than a passage."""
    rng = random.Random(1)
    return {
        "long": [[document(rng, 200) for _ in range(40)] for _ in range(3)],
        "short": [[document(rng, 8) for _ in range(40)]],
    }


@pytest.fixture(scope="module")
def index(sets: dict[str, list[list[str]]]) -> leaks.Index:
    return leaks.Index((name, texts) for name, batches in sets.items() for texts in batches)


def test_shared_passages_are_found_whatever_their_case_and_punctuation(
    index: leaks.Index, sets: dict[str, list[list[str]]]
) -> None:
    rng = random.Random(2)
    clean = [document(rng, 300) for _ in range(50)]
    source = sets["long"][2][7].split()
    passage = source[50:63]
    long, short = sets["long"][0][3], sets["short"][0][5]
    leaking = {
        0: ("long", f"{document(rng, 40)}: {long}"),  # a whole document in a longer one
        7: ("long", f"{clean[7]} «{', '.join(passage).upper()}»! {clean[8]}"),
        20: ("short", f"\n {short.title()}. "),
        49: ("long", " ".join(source[-13:])),
    }
    texts = [leaking[i][1] if i in leaking else text for i, text in enumerate(clean)]
    found = index.find(texts)
    assert {i: list(sets) for i, sets in enumerate(found) if sets} == {
        i: [name] for i, (name, _) in leaking.items()
    }
    assert found[7]["long"] == " ".join(passage)
    assert found[49]["long"] == " ".join(source[-13:])


def test_what_is_nearly_the_same_is_not_a_leak(
    index: leaks.Index, sets: dict[str, list[list[str]]]
) -> None:
    source, short = sets["long"][1][1].split(), sets["short"][0][0]
    harmless = [
        " ".join(source[:12]),  # a word less
        " ".join([*source[:6], "another", *source[6:12]]),
        " ".join(source[5:17][::-1]),
        f"{short} more",
        short.replace(" ", ""),
        "",
        "… !? …",
    ]
    assert not any(index.find(harmless))
    across = [" ".join(source[:7]), " ".join(source[7:14])]  # two documents, one passage
    assert not any(index.find(across))


def test_text_that_many_documents_of_a_set_share_is_common() -> None:
    rng = random.Random(3)
    licence = document(rng, 30)
    few = [f"{licence} {document(rng, 50)}" for _ in range(10)]
    more = [f"{licence} {document(rng, 50)}" for _ in range(11)]
    assert leaks.Index([("code", few)]).find([licence])[0]
    assert not leaks.Index([("code", more[:5]), ("code", more[5:])]).find([licence])[0]
    repeated = leaks.Index([("code", [" ".join([licence] * 20)])])  # in one document
    assert repeated.find([licence])[0]


def test_documents_in_other_scripts_are_compared_too() -> None:
    greek = (
        "μήνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος οὐλομένην ἣ μυρί Ἀχαιοῖς ἄλγε ἔθηκε πολλὰς δ ἰφθίμους"
    )
    index = leaks.Index([("homer", [greek])])
    quoted = "“" + greek.replace(" ", " — ") + "”…"
    assert list(index.find([quoted])[0]) == ["homer"]
    assert not any(index.find([greek[::-1], greek[10:-10]]))


def test_scripts_without_spaces_are_compared_by_letters() -> None:
    poem = "床前明月光疑是地上霜舉頭望明月低頭思故鄉"
    full_width = "ＴＨＥ quick brown fox， jumps over the lazy dog and then rests a while"
    index = leaks.Index([("poem", [poem]), ("fox", [full_width])])
    inside = f"昔人有詩云「{poem[:10]}、{poem[10:]}」也"
    plain = "the quick brown fox jumps over the lazy dog and then rests a while"
    assert [list(sets) for sets in index.find([inside, poem[:12], plain])] == [
        ["poem"],
        [],
        ["fox"],
    ]


def test_too_much_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches() -> Iterator[tuple[str, list[str]]]:
        rng = random.Random(4)
        while True:  # is not read to its end
            yield "web", [document(rng, 100)]

    monkeypatch.setattr(leaks, "MOST", 1000)
    with pytest.raises(InputError, match=r"more than 1,000 words"):
        leaks.Index(batches())
