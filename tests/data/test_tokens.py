"""A word looked for in a text, against the tokens of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from dcdt.data.tokens import contains_token, fold_case, tokenize

texts = st.one_of(*(st.text(st.sampled_from(few), max_size=9) for few in ("特征a", "aÅ_² ﬁ")), st.text(max_size=9))


@given(text=texts, other=texts)
def test_a_word_is_found_where_it_is_one_of_the_tokens(text, other):
    tokens = set(tokenize(text))
    for token in tokens | set(tokenize(other)):
        assert contains_token(fold_case(text), token) == (token in tokens)
