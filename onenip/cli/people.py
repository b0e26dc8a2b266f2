"""`onenip people`: who may review and decide."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from onenip.data.labels import clean_name

RoleChoice = Literal["viewer", "inspector", "approver"]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As it stands in records.")]


def add(
    name: NameArgument,
    *,
    role: Annotated[
        RoleChoice,
        typer.Option(
            metavar="viewer|inspector|approver",
            help="Inspectors give feedback and review, approvers decide about models, too.",
        ),
    ],
    category: Annotated[
        str,
        typer.Option(
            "--category", "-c", metavar="CATEGORY", help="[default: all]", parser=clean_name
        ),
    ] = "",
    keep_password: Annotated[
        bool, typer.Option("--keep-password", help="Change the role alone.")
    ] = False,
    no_password: Annotated[
        bool,
        typer.Option(
            "--no-password", help="A proxy or the company's login knows them by this name."
        ),
    ] = False,
) -> None:
    """List a person with a role and a password, which is asked for.

    The pages ask for a person where there is something to decide; with a list, `onenip serve` does, too.
    """
    from onenip.serving.people import ALL, People

    password = None if no_password else ""
    if not (keep_password or no_password):
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    person = People().add(name, role, category=category or ALL, password=password)
    typer.echo(f"{person.name}: {_describe(person.roles)}")


def show() -> None:
    """List people and their roles."""
    from onenip.serving.people import People

    for person in People().list_all():
        typer.echo(f"{person.name}: {_describe(person.roles)}")


def remove(name: NameArgument) -> None:
    """Take a person off the list; what they decided stays on record."""
    from onenip.serving.people import People

    People().remove(name)
    typer.echo(f"{name}: removed")


def _describe(roles: object) -> str:
    assert isinstance(roles, dict)
    return ", ".join(f"{role} of {c if c != '*' else 'all'}" for c, role in sorted(roles.items()))
