"""Generated support text: the same seed gives the same words, and no two pieces of one run begin alike."""

from random import Random

_NOUNS = (
    "order parcel refund invoice kettle lamp warranty address courier voucher account password battery charger jacket shoe ticket "
    "delivery payment card return label store screen cable bottle filter engine window garden bicycle helmet camera printer"
).split()
_VERBS = "check replace return send confirm cancel open repair refund track change accept report explain deliver collect keep store".split()
_PLACES = "Berlin Oslo Lisbon Dublin Vienna Prague Zurich Madrid Athens Warsaw Turin Lyon Ghent Porto Malmo Graz Leeds Bergen".split()
_QUESTIONS = (
    "When will the {0} that I ordered arrive in {2}?",
    "My {0} came without its {1}, what should I do now?",
    "How do I {3} a {0} that I bought in the {2} shop?",
    "Can I still {3} the {0} after {4} days?",
)


class Prompts:
    """Text for one run; every call gives something new."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def policy(self, num_words: int) -> str:
        """A system prompt of at least `num_words` words."""
        pick, number = self._random.choice, self._random.randrange
        words = f"{number(10**6):06d} is the number of this shop in {pick(_PLACES)}. You are its support assistant.".split()
        while len(words) < num_words:
            words += (
                f"Before you {pick(_VERBS)} a {pick(_NOUNS)} from {pick(_PLACES)}, {pick(_VERBS)} the {pick(_NOUNS)} within "
                f"{number(2, 60)} days and {pick(_VERBS)} the {pick(_NOUNS)}."
            ).split()
        return " ".join(words)

    def question(self) -> str:
        """One short question."""
        pick, number = self._random.choice, self._random.randrange
        text = pick(_QUESTIONS).format(pick(_NOUNS), pick(_NOUNS), pick(_PLACES), pick(_VERBS), number(2, 60))
        return f"{number(10**6):06d} is my customer number. {text}"
