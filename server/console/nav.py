"""The console's navigation, and who may go where."""

from dataclasses import dataclass

from feedback.credentials import Role

RANK: dict[Role, int] = {"agent": 1, "editor": 2, "admin": 3}


@dataclass(frozen=True, slots=True)
class NavItem:
    """`words` is a key of web/i18n; whoever ranks below `role` does not see it."""

    path: str
    words: str
    role: Role


NAV = (
    NavItem("/console/inbox", "console_inbox", "agent"),
    NavItem("/console/conversations", "console_conversations", "agent"),
    NavItem("/console/knowledge", "console_knowledge", "editor"),
    NavItem("/console/policy", "console_policy", "editor"),
    NavItem("/console/tools", "console_tools", "editor"),
    NavItem("/console/insights", "console_insights", "editor"),
    NavItem("/console/review", "console_review", "editor"),
    NavItem("/console/rounds", "console_rounds", "editor"),
    NavItem("/console/agents", "console_agents", "admin"),
    NavItem("/console/sites", "console_sites", "admin"),
    NavItem("/console/settings", "console_settings", "admin"),
    NavItem("/console/audit", "console_audit", "admin"),
)


def may(role: Role, needed: Role) -> bool:
    """Each role may do what the ones below it may: agent, editor, admin."""
    return RANK[role] >= RANK[needed]


def nav_for(role: Role) -> list[NavItem]:
    return [item for item in NAV if may(role, item.role)]
