"""Only the right password of an agent who still works here opens a session, and the session ends when it should."""

import ast
import inspect

import pytest
from sqlalchemy import select

from feedback import credentials as module
from feedback.accounts import IDLE_MS, SESSION_MS, Accounts
from feedback.credentials import AccountError, BadPassword, WrongPassword, is_password
from feedback.database import Database
from feedback.tables import agent, session
from tests.feedback.conftest import Clock

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is a parameter; one test pays the real one."""
    monkeypatch.setitem(module.SCRYPT, "n", 16)
    monkeypatch.setattr(module, "NOBODYS_HASH", module.NOBODYS_HASH.replace("16384", "16"))


@pytest.fixture
def accounts(database: Database, clock: Clock) -> Accounts:
    return Accounts(database, clock)


async def test_a_right_password_opens_a_session_and_the_name_may_be_typed_in_any_case(accounts: Accounts) -> None:
    added = await accounts.add("Li Wei", "editor", PASSWORD, must_change=True)
    for name in ("Li Wei", " li wei", "ＬＩ ＷＥＩ"):
        agent, token = await accounts.sign_in(name, PASSWORD)
        assert agent == added == await accounts.signed_in(token)
    assert (added.role, added.must_change_password) == ("editor", True)


@pytest.mark.parametrize(("name", "password"), [("wei", PASSWORD + "!"), ("wei", ""), ("nobody", PASSWORD), ("' OR 1=1--", "' OR 1=1--")])
async def test_anything_else_opens_nothing(accounts: Accounts, database: Database, name: str, password: str) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    with pytest.raises(WrongPassword):
        await accounts.sign_in(name, password)
    assert await database.read(lambda connection: connection.execute(select(session)).all()) == []
    assert await accounts.signed_in("") is await accounts.signed_in("\ud800") is None


async def test_neither_password_nor_token_is_stored(accounts: Accounts, database: Database) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    await accounts.add("mei", "agent", PASSWORD, must_change=False)
    _, token = await accounts.sign_in("wei", PASSWORD)
    rows = await database.read(lambda connection: [*connection.execute(select(agent)), *connection.execute(select(session))])
    assert PASSWORD not in repr(rows) and token not in repr(rows)
    assert rows[0].password_hash != rows[1].password_hash


async def test_a_session_ends_after_idle_hours_and_after_its_days(accounts: Accounts, clock: Clock) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    _, left = await accounts.sign_in("wei", PASSWORD)
    _, used = await accounts.sign_in("wei", PASSWORD)
    for _ in range(SESSION_MS // (IDLE_MS // 2) - 1):
        clock.ms += IDLE_MS // 2
        assert await accounts.signed_in(used)
    assert await accounts.signed_in(left) is None
    clock.ms += IDLE_MS // 2
    assert await accounts.signed_in(used) is None


@pytest.mark.parametrize("how", ["sign_out", "password", "role", "disable"])
async def test_what_ends_a_session_ends_it_at_once(accounts: Accounts, how: str) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    await accounts.add("mei", "agent", PASSWORD, must_change=False)
    _, token = await accounts.sign_in("wei", PASSWORD)
    _, other = await accounts.sign_in("mei", PASSWORD)
    if how == "sign_out":
        await accounts.sign_out(token)
    elif how == "password":
        await accounts.set_password("wei", "another long one", must_change=False)
    elif how == "role":
        await accounts.set_role("wei", "admin")
    else:
        await accounts.set_disabled("wei", disabled=True)
    assert await accounts.signed_in(token) is None
    assert await accounts.signed_in(other)


async def test_a_disabled_agent_cannot_sign_in_until_enabled(accounts: Accounts) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    await accounts.set_disabled("wei", disabled=True)
    with pytest.raises(WrongPassword):
        await accounts.sign_in("wei", PASSWORD)
    await accounts.set_disabled("wei", disabled=False)
    await accounts.sign_in("wei", PASSWORD)


async def test_names_and_passwords_that_cannot_be_are_refused(accounts: Accounts) -> None:
    await accounts.add("wei", "agent", PASSWORD, must_change=False)
    with pytest.raises(AccountError, match="already"):
        await accounts.add("WEI ", "admin", PASSWORD, must_change=False)
    for name in ("", "  ", "a" * 101, "a\nb", "a\u202eb"):
        with pytest.raises(AccountError, match="printable"):
            await accounts.add(name, "agent", PASSWORD, must_change=False)
    for password in ("short", "x" * 201, "Longer Than Twelve"):
        with pytest.raises(BadPassword):
            await accounts.add("longer than twelve", "agent", password, must_change=False)
    with pytest.raises(AccountError, match="no agent"):
        await accounts.set_role("nobody", "admin")


async def test_the_real_cost_is_what_owasp_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    stored = module.hash_password(PASSWORD)
    assert stored.startswith("scrypt:16384:8:5:")
    assert is_password(PASSWORD, stored) and not is_password(PASSWORD + " ", stored)
    assert not is_password(PASSWORD, module.NOBODYS_HASH)


def test_secrets_are_compared_in_constant_time() -> None:
    tree = ast.parse(inspect.getsource(module))
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and "presented" in ast.unparse(node)]
    assert compared == []
    assert "compare_digest(bytes.fromhex(wanted), presented)" in ast.unparse(tree)
