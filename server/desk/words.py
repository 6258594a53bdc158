"""Words that ask for a person, and that say yes or no. The lists are short on purpose: who is not understood here still has the button."""

import re

_WHO = (
    r"(?:real |live |actual |human )?"
    r"(?:human(?: being)?|person|agent|representative|operator|(?:member of )?staff|manager|colleague|employee)"
)
_ASKS = re.compile(
    rf"\b(?:talk|speak|chat) (?:to|with) (?:an? |the |your |one of your )?(?:{_WHO}|someone|somebody)\b"
    rf"|\b(?:connect|transfer|forward|hand|put|pass|patch) me (?:over |on |through )?(?:to|with) (?:an? |your |the )?(?:{_WHO}|someone)\b"
    rf"|\b(?:get|give|fetch) me (?:an? |your |the )?{_WHO}\b"
    rf"|\b(?:want|need|like|prefer) an? {_WHO}(?: now| please| here)?$"
    rf"|^\W*(?:an? )?{_WHO}(?:,? please)?\W*$"
    r"|(?:转|接|找|换)(?:接|到|一下|个|一个)?(?:人工|真人|活人)(?!费|智)|(?:跟|和|与)(?:真人|活人|人工(?:客服)?)(?:说|聊|讲|谈|沟通|对话)"
    r"|^\W*(?:人工|真人)(?:客服|服务)?\W*$",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"\b(?:no need|not|don'?t|do not|never|without)\b[^.,!?]{0,20}\b(?:talk|speak|chat|connect|transfer|want|need|person|human)\b"
    r"|(?:不用|不要|不想|不需要|无需|别)[^，。！？,.!?]{0,4}(?:转|接|找|换|跟|和|与)",
    re.IGNORECASE,
)
_OFFERS = re.compile(
    r"\b(?:shall|should|can|may|would you like|do you want)\b[^.?!]*\b(?:person|human|colleague|agent|team)\b[^.!]*\?"
    r"|(?:需要|要不要|是否|要)[^。？?]*(?:人工|真人|同事)[^。？?]*[？?]",
    re.IGNORECASE,
)
_AGREES = re.compile(
    r"\W*(?:yes|yeah|yep|sure|ok(?:ay)?|alright|please|go ahead|do (?:that|it)|confirm(?:ed)?)"
    r"(?:[ ,]+(?:yes|please|do|that|thanks|thank you|would be (?:good|nice|great)))*\W*"
    r"|\W*(?:好|好的|好吧|是|是的|对|要|要的|需要|可以|行|嗯|确认|确定|麻烦(?:你|您)?|请)"
    r"(?:[，, ]*(?:请|转吧|转|谢谢|谢谢您|麻烦了|吧|了|的))*\W*",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"\W*(?:no|nope|nah|don'?t|do not|please don'?t)(?:[ ,]+(?:no|thanks|thank you|please|don'?t|do (?:that|it)))*\W*"
    r"|\W*(?:不|不要|不用|不必|别|算了|不了|否)(?:[，, ]*(?:谢谢|谢谢您|不用|不要|了))*\W*",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.,;!?，。；！？]")
MAX_YES_CHARS = 40
_APOSTROPHE = str.maketrans({"’": "'"})


def wants_person(text: str, last_answer: str) -> bool:
    """Does a customer ask for a person, or agree to the one that `last_answer` offers?"""
    said = _plain(text)
    if yes_or_no(text):
        return _OFFERS.search(last_answer) is not None
    return any(_ASKS.search(clause) and not _REFUSES.search(clause) for clause in _CLAUSE.split(said))


def yes_or_no(text: str) -> bool | None:
    """What a plain yes or no says; None for everything else, a yes with a condition included."""
    said = _plain(text)
    if len(said) > MAX_YES_CHARS:
        return None
    return True if _AGREES.fullmatch(said) else False if _DECLINES.fullmatch(said) else None


def _plain(text: str) -> str:
    return " ".join(text.translate(_APOSTROPHE).split())
