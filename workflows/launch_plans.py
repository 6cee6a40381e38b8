"""Launch plans: what runs by the clock, and under which names."""

from flytekit import CronSchedule, LaunchPlan

from workflows.end_to_end import end_to_end
from workflows.parts import data_only

nightly = LaunchPlan.get_or_create(
    end_to_end,
    name="nightly",
    schedule=CronSchedule(schedule="0 2 * * *"),
    fixed_inputs={"profile": "smoke"},
    default_inputs={"overrides": []},
)
data_check = LaunchPlan.get_or_create(
    data_only,
    name="data_check",
    schedule=CronSchedule(schedule="30 * * * *"),
    fixed_inputs={"profile": "smoke"},
    default_inputs={"overrides": []},
)
