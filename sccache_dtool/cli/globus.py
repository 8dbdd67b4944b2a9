"""`globus`: the account with which Globus is asked to transfer files."""

from __future__ import annotations

import click

from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.errors import CacheError, FetchFailed, UsageError


@click.command("globus")
@click.argument("action", type=click.Choice(["login", "logout"]))
@click.option(
    "--collection",
    "collections",
    multiple=True,
    metavar="UUID",
    help="Also consent to access to the data in this collection. Repeatable.",
)
@common_options()
@pass_invocation
def globus_command(call: Invocation, action: str, collections: tuple[str, ...]) -> None:
    """Log in to Globus for sources globus://..., or log out.

    `login` stores tokens in ~/.globus, and `logout` revokes and removes them. A mapped collection may require a consent
    of its own: then `use` fails, and prints the command that gives it. With $GLOBUS_CLIENT_ID and
    $GLOBUS_CLIENT_SECRET, no login is needed.

    \b
    Example:
      sc-dtool globus login
    """
    from sccache_dtool.fetch import globus

    lacking = globus.to_install("globus")
    if lacking is not None:
        raise FetchFailed("the package for Globus is not installed", hint=f"install it: {lacking}")
    import globus_sdk
    from globus_sdk.scopes import GCSCollectionScopes, TransferScopes

    app = globus.make_app(call.cache().settings, asks=True)
    if isinstance(app, globus_sdk.ClientApp):
        raise UsageError(f"${globus.CLIENT_SECRET} is set, so that no login is needed")
    scope = TransferScopes.all
    for collection in collections:
        scope = scope.with_dependency(GCSCollectionScopes(collection).data_access.with_optional(True))
    app.add_scope_requirements({globus_sdk.TransferClient.resource_server: [scope]})
    try:
        if action == "logout":
            app.logout()
        else:
            app.login(force=bool(collections))
    except globus_sdk.GlobusError as error:
        raise CacheError(f"Globus refused the {action}: {error}") from error
    call.out.result(
        "globus", {"action": action}, "logged out of Globus" if action == "logout" else "logged in to Globus"
    )
