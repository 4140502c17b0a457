from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from training.record import markdown
from training.record.keys import TAG_LIMIT


def text_of(source: str) -> str:
    """What a reader of a line of Markdown sees."""
    (paragraph,) = [t for t in MarkdownIt().parse(source) if t.type == "inline"]
    return "".join(child.content for child in paragraph.children or [])


@given(st.text(st.sampled_from("ab_*[]()<>|`~#!\\ -"), min_size=1).map(lambda s: f"x{s}x"))
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    assert text_of(markdown.escaped(text)) == text


def test_names_with_underscores_stay_legible() -> None:
    assert markdown.escaped("common_crawl") == "common_crawl"


def test_a_table_of_mixtures_sums_up_small_domains() -> None:
    shares = {f"d{i:02d}": 1 / 40 for i in range(40)}
    table = markdown.mixtures({"best": shares, "default": shares}, {"loss": {"best": "3.1"}})
    lines = table.splitlines()
    assert lines[0] == "|  | best | default |"
    assert lines[-2] == "| 15 further domains | 0.375 | 0.375 |"
    assert lines[-1] == "| **loss** | 3.1 |  |"


def test_parts_that_do_not_fit_are_left_out_whole() -> None:
    text = markdown.fitting_parts(["first", "x" * TAG_LIMIT, "third"], "end")
    assert text == "first\n\nthird\n\nend"


def test_a_list_takes_the_newest_line_first_and_forgets_the_oldest() -> None:
    text = markdown.with_line(markdown.with_line("about", "Answers", "one"), "Answers", "two")
    assert text == "about\n\n**Answers**\n\n- two\n- one"
    assert markdown.with_line(text, "Answers", "one") == "about\n\n**Answers**\n\n- one\n- two"
    for i in range(300):
        text = markdown.with_line(text, "Answers", f"[run {i}](#/experiments/0/runs/{i:032d})")
    assert len(text) <= TAG_LIMIT
    mine = text + "\n\nmy own words\n\nbelow it"
    assert markdown.with_line(mine, "Answers", "x").endswith("\n\nmy own words\n\nbelow it")
    assert "run 299" in text
    assert "run 0]" not in text
    assert text.startswith("about\n\n**Answers**")
