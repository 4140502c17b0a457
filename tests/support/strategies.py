"""What property tests draw."""

from hypothesis import strategies as st

from training.record.keys import name_fault

names = st.text(min_size=1, max_size=12).filter(lambda name: name_fault(name) is None)


@st.composite
def mixtures(draw: st.DrawFn, domains: int) -> list[float]:
    """Proportions of this many domains that sum to one, some of them 0."""
    parts = st.integers(0, 1000)
    drawn = draw(st.lists(parts, min_size=domains, max_size=domains).filter(any))
    return [part / sum(drawn) for part in drawn]
