"""Generated support text: the same seed gives the same words, and no two pieces of one run begin alike."""

from random import Random

_NOUNS = (
    "order parcel refund invoice kettle lamp warranty address courier voucher account password battery charger jacket shoe ticket "
    "delivery payment card return label store screen cable bottle filter engine window garden bicycle helmet camera printer"
)
_VERBS = "check replace return send confirm cancel open repair refund track change accept report explain deliver collect keep store"
_PLACES = "Berlin Oslo Lisbon Dublin Vienna Prague Zurich Madrid Athens Warsaw Turin Lyon Ghent Porto Malmo Graz Leeds Bergen"
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
        self._nouns, self._verbs, self._places = _NOUNS.split(), _VERBS.split(), _PLACES.split()

    def policy(self, num_words: int) -> str:
        """A system prompt of at least `num_words` words."""
        pick, number = self._random.choice, self._random.randrange
        words = f"{number(10**6):06d} is the number of this shop in {pick(self._places)}. You are its support assistant.".split()
        while len(words) < num_words:
            rule = f"Before you {pick(self._verbs)} a {pick(self._nouns)} from {pick(self._places)}, {pick(self._verbs)} the"
            words += f"{rule} {pick(self._nouns)} within {number(2, 60)} days and {pick(self._verbs)} the {pick(self._nouns)}.".split()
        return " ".join(words)

    def question(self) -> str:
        """One short question."""
        pick, number = self._random.choice, self._random.randrange
        text = pick(_QUESTIONS).format(pick(self._nouns), pick(self._nouns), pick(self._places), pick(self._verbs), number(2, 60))
        return f"{number(10**6):06d} is my customer number. {text}"
