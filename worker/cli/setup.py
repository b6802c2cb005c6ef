"""`optout setup`: Twilio's side of a project, planned, shown, and done after consent."""

import sys

import click

from worker.checks.configuration import accounts_of
from worker.cli.common import chosen_projects, make_services
from worker.services import Services
from worker.steps.service_senders import learn_senders
from worker.twilio.account import TwilioAccountView
from worker.twilio.client import working_client
from worker.twilio.setup.plan import Mode, Plan, choose_mode, plan_setup, plan_undo


@click.command()
@click.option("--project", help="Only this project.")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    help="events: an Event Streams sink, every address stays as it is. webhook: Twilio calls this program, "
    "which hands on where forward_url says. Default: what disturbs nothing.",
)
@click.option("--undo", is_flag=True, help="Restore what was there before optout setup.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
def setup(project: str | None, mode: str | None, undo: bool, yes: bool) -> None:
    """Have Twilio send a project's incoming messages here.

    Shows what it would do, and does it after a yes. It can be run again at any time: what is right is left
    alone. What was there before is remembered, and --undo puts it back. The configuration file is yours: the
    lines to write into it are printed.

    Exit code 1 where something has to be decided or fixed first, or was declined.
    """
    services = make_services()
    names = chosen_projects(services, project)
    services.redis.ping()  # what was there before must be remembered: without Redis nothing is begun
    sides = _sides(services, names)
    well = True
    for name in names:
        side = sides[services.config.projects[name].twilio]
        click.echo(click.style(name, bold=True))
        if undo:
            plan = plan_undo(name, services.config, side, services.redis, names)
        else:
            plan = _setup_plan(name, services, side, mode)
        done = _carry_out(name, plan, yes=yes)
        well = done and well
        if done and not undo:
            learn_senders(name, services, service_sid=plan.configuration.get("messaging_service_sid"))
    if not well:
        sys.exit(1)


def _sides(services: Services, names: list[str]) -> dict[str, TwilioAccountView]:
    config = services.config
    return {
        account: TwilioAccountView(working_client(config.twilio[account]), config.public_url)
        for account in accounts_of(config, names)
    }


def _setup_plan(name: str, services: Services, side: TwilioAccountView, asked: str | None) -> Plan:
    project = services.config.projects[name]
    mode, why = (Mode(asked), "as asked") if asked else choose_mode(project, side)
    click.echo(f"  mode {mode.value}: {why}")
    return plan_setup(name, services.config, side, services.redis, mode)


def _carry_out(name: str, plan: Plan, *, yes: bool) -> bool:
    """Show a plan, ask, do it. False where it was not done, or not wholly."""
    _show_plan(plan)
    if plan.blockers:
        return False
    if plan.steps and not yes and not click.confirm("  Do this?"):
        click.echo("  nothing was done")
        return False
    for number, step in enumerate(plan.steps, start=1):
        step.apply()
        click.echo(f"  {number}.    done")
    _show_rest(name, plan)
    return True


def _show_plan(plan: Plan) -> None:
    for line in plan.satisfied:
        click.echo(f"  ok    {line}")
    for line in plan.blockers:
        click.echo(f"  first {line}")
    if plan.blockers:
        return
    for number, step in enumerate(plan.steps, start=1):
        click.echo(f"  {number}.    {step.text.replace(chr(10), chr(10) + '        ')}")
    if not plan.steps:
        click.echo("  nothing to do")


def _show_rest(name: str, plan: Plan) -> None:
    if plan.configuration:
        click.echo(f"  Write into [projects.{name}] of the configuration file, and restart web and worker:")
        for key, value in plan.configuration.items():
            click.echo(f'    {key} = "{value}"')
    if plan.manual_steps:
        click.echo("  What only Twilio's Console can do (skip what is done already):")
    for number, text in enumerate(plan.manual_steps, start=1):
        click.echo(f"    {number}) {text}")
