"""What of a conversation the model reads: whose turn is whose, in which language, from where on."""

from dataclasses import replace

from backends.mini.shop import Language
from feedback.record import Message, NotFound, Role
from feedback.rephrase import is_courtesy
from server.chat.service import ChatMessage
from server.language import detect_language

Exchange = tuple[ChatMessage, ...]


def find(said: list[Message], message_id: str, role: Role) -> Message:
    for message in said:
        if message.id == message_id and message.role == role:
            return message
    raise NotFound("no such message")


def since_agent(branch: list[Message]) -> list[Message]:
    """What a customer may still put in other words: what a person answered stands."""
    last = max((place for place, message in enumerate(branch) if message.role == "agent"), default=-1)
    return branch[last + 1 :]


def language_of(opened_in: str, said: list[Message]) -> Language:
    """The customer's language now: that of the last message that shows one."""
    language: Language = "zh" if opened_in == "zh" else "en"
    for message in said:
        if message.role == "user":
            language = detect_language(message.text, language)
    return language


def turns_of(said: list[Message]) -> list[Exchange]:
    """Question and answer, oldest first; an agent's answer is an answer, and what an agent adds to one belongs to it.

    Questions without an answer join the next one; sent again, they count once.
    """
    turns: list[Exchange] = []
    open_questions: list[str] = []
    for message in said:
        if message.role == "user":
            open_questions = [text for text in open_questions if text != message.text] + [message.text]
        elif message.text and open_questions:
            turns.append((ChatMessage("user", "\n".join(open_questions)), ChatMessage("assistant", message.text)))
            open_questions = []
        elif message.text and turns:
            question, answer = turns[-1]
            turns[-1] = (question, replace(answer, content=f"{answer.content}\n{message.text}"))
    turns.append((ChatMessage("user", "\n".join(open_questions)),))
    return turns


def last_answers(said: list[Message]) -> list[str]:
    """The bot's last two answers, which are not to be said again; none where the customer greets or thanks, as that is answered alike."""
    if is_courtesy(said[-1].text):
        return []
    return [message.text for message in said if message.role == "assistant"][-2:]


def later(turns: list[Exchange], first: int, num_excess_chars: float) -> int:
    """The first turn of a window that is smaller by about so many characters. The question stays."""
    last = len(turns) - 1
    while first < last and num_excess_chars > 0:
        num_excess_chars -= num_chars(turns[first])
        first += 1
    return first


def num_chars(messages: Exchange) -> int:
    return sum(len(message.content) for message in messages)
