"""One calibration from the engine's start to its end: steps, then short serving runs, every point kept as it comes."""

import time
from typing import NamedTuple

from planner.calibrate.measure.design import EngineLimits, Plan, candidate_shapes
from planner.calibrate.measure.engine_process import STOP_S, EngineDied, EngineProcess
from planner.calibrate.measure.engine_protocol import Failed, FailureKind, Serve, Served, Start, Started
from planner.calibrate.measure.lower_memory import lowered, what_changed
from planner.calibrate.measure.session import Budget, Progress, StepSession, Tools, check_lives, now
from planner.calibrate.measure.telemetry import disturbances
from planner.calibrate.step_deployment import deployment_of
from planner.domain.calibration import (
    CalibrationRun,
    Device,
    EngineSetup,
    RunEnd,
    ServingLoad,
    ServingPoint,
    StepShape,
)
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.operators import GpuOperators

SERVING_SHARE = 0.25
"""Of the budget that is left once the engine runs."""
INTERRUPTED_STOP_S = 3.0
"""That an engine gets to end by itself where somebody waits at the keyboard."""
MOST_DEATHS = 3
"""Of the engine, after which the measuring ends."""
SERVING_USERS = (4, 16)
"""At a time, in one serving run after the other."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 12
"""Requests of each user."""
SERVED_INPUT_SHARE = 0.15
"""Prompt over max_model_len."""
SERVED_OUTPUT_TOKENS = (128, 64, 32, 16, 8)
"""The longest answer that leaves time for enough rounds is taken."""
SERVED_LOW_RATIO = 0.5
SLOWER_IN_SERVICE = 1.2
"""What a serving run takes beside the sum of its steps, for planning its length."""


class Setting(NamedTuple):
    """What is measured, with what."""

    engine: EngineProcess
    start: Start
    operators: GpuOperators
    """What is known of the device's kernels before."""
    plan: Plan
    budget: Budget
    tools: Tools


class Calibration:
    """Measures one deployment. `run` is what was found so far, at any time."""

    def __init__(self, run: CalibrationRun, setting: Setting) -> None:
        self.run = run
        self._setting = setting
        self._start = setting.start
        self._served_asynchronously = False
        self._may_serve_asynchronously = True

    def measure(self) -> CalibrationRun:
        """Everything that the budget allows; the run says how it ended.

        An engine that dies is started again and not asked for the point that it died at; one that lacks memory to
        start is tried once more with less. Ctrl-C ends the run with what it has.
        """
        end, reason, patience_s = RunEnd.FINISHED, "", STOP_S
        try:
            reason = self._everything()
            end = RunEnd.FAILED if reason else RunEnd.FINISHED
        except KeyboardInterrupt:
            end, reason, patience_s = RunEnd.INTERRUPTED, "interrupted", INTERRUPTED_STOP_S
        finally:
            self._setting.engine.close(patience_s=patience_s)
        series = self._setting.tools.probe.series()
        self._keep(end=end, end_reason=reason, ended_at=now(), series=series, notes=self._notes())
        return self.run

    def _everything(self) -> str:
        """Why it failed; empty where it did not."""
        deaths = 0
        while True:
            failure = self._started()
            if failure:
                return failure
            try:
                self._steps(Budget(time.monotonic(), self._steps_s()))
                if self._ready_to_serve():
                    self._serving()
            except EngineDied as death:
                # Running out of memory lowers the grid, so that it comes to an end by itself.
                deaths += not death.out_of_memory
                if deaths == MOST_DEATHS:
                    return f"the engine died {deaths} times, the last time so: {death}{self._kept_points()}"
                if self._has_time_to_start():
                    continue
            return self._nothing_measured()

    def _kept_points(self) -> str:
        """What a failed run holds all the same, for the end of a sentence."""
        return f"; {len(self.run.points)} points are kept" if self.run.points else ""

    def _has_time_to_start(self) -> bool:
        start_s = self.run.engine.start_s if self.run.engine is not None else 0.0
        return self._setting.budget.left_s > start_s

    def _nothing_measured(self) -> str:
        """Why there are no steps; empty where there are."""
        if self.run.measured:
            return ""
        failed = next((point.failed for point in self.run.points if point.failed), "")
        if failed:
            return f"no step could be measured: {failed}"
        if not candidate_shapes(self._limits()):
            return f"no step fits {self._limits().max_model_len:,} tokens in blocks of {self._limits().block_size}"
        start_s = self.run.engine.start_s if self.run.engine is not None else 0.0
        return (
            f"the engine took {start_s:.0f} s to start, which left no time for a step; "
            f"the budget was {self._setting.budget.total_s:.0f} s"
        )

    def _started(self) -> str:
        """Starts the engine and keeps what it says of itself; why it did not start, else empty."""
        answer = self._answer_to(self._start, "starting vLLM")
        if isinstance(answer, Failed) and answer.kind is FailureKind.OUT_OF_MEMORY:
            answer = self._started_with_less(answer)
        if isinstance(answer, Failed):
            return answer.message + self._kept_points()
        if self.run.points and self.run.engine is not None:
            changed = changed_flags(self.run.engine, answer.engine)
            if changed:
                return f"the points so far are of another engine ({changed}): start a run of its own"
        self._keep(engine=answer.engine, memory=answer.memory)
        return ""

    def _answer_to(self, start: Start, doing: str) -> Started | Failed:
        """What an engine says to its start; a failure also where it died of it."""
        setting = self._setting
        setting.tools.show(Progress(setting.budget.spent_s, setting.budget.total_s, doing))
        try:
            return setting.engine.start(start)
        except EngineDied as death:
            memory = death.out_of_memory is not False
            kind = FailureKind.OUT_OF_MEMORY if memory else FailureKind.ENGINE
            return Failed(kind=kind, message=f"vLLM did not start: {death}")
        except OSError as error:
            message = f"the engine's log cannot be written: {error.strerror or error}"
            return Failed(kind=FailureKind.ENGINE, message=message)

    def _started_with_less(self, failed: Failed) -> Started | Failed:
        """Once more with less memory, which the run then says, and keeps for every later start.

        Limits shrink only where nothing was measured under them.
        """
        less = lowered(self._start, failed.message, limits=not self.run.points)
        changed = what_changed(self._start, less)
        if not changed or self._setting.budget.left_s <= 0:
            return failed
        answer = self._answer_to(less, "starting vLLM with less memory")
        if isinstance(answer, Failed):
            message = f"{failed.message}; with {changed} it did not start either: {answer.message}"
            return answer.model_copy(update={"message": message})
        self._start = less
        self._note(f"started with {changed}, since before that: {failed.message}")
        return answer

    def _steps(self, budget: Budget) -> None:
        engine = self.run.engine
        assert engine is not None
        deployment = deployment_of(self.run.target, engine, self._setting.operators)
        session = StepSession(self.run, deployment, self._setting.tools, self._setting.plan)
        try:
            session.measure(self._setting.engine, self._limits(), budget)
        finally:
            self.run = session.run

    def _steps_s(self) -> float:
        """The part of what is left that steps get."""
        left_s, engine = self._setting.budget.left_s, self.run.engine
        if engine is not None and self._serves_asynchronously():
            left_s = max(left_s - engine.start_s, 0.5 * left_s)
        return left_s * (1.0 - SERVING_SHARE)

    def _serves_asynchronously(self) -> bool:
        """Whether a server of this release would schedule a step while the last one runs: on a CPU none does."""
        engine = self.run.engine
        if not self._may_serve_asynchronously or self._start.device is not Device.CUDA or engine is None:
            return False
        return engine_rules(engine.engine_version).async_scheduling

    def _ready_to_serve(self) -> bool:
        """Starts the engine anew with asynchronous scheduling where servers have it, since steps cannot be timed so.

        Without made-up context too, which no server has. Where no server schedules so, where there is no time for it,
        or where the engine does not start so, serving runs are made with the engine of the steps. False where none
        runs.
        """
        setting, engine = self._setting, self.run.engine
        self._served_asynchronously = False
        if engine is None or not self._serves_asynchronously():
            return True
        if setting.budget.left_s < 1.5 * engine.start_s:
            self._note("not served asynchronously, as servers do: the budget left no time to start vLLM so")
            return True
        setting.engine.close()
        as_servers = self._start.model_copy(update={"async_scheduling": True, "made_up_context": False})
        answer = self._answer_to(as_servers, "starting vLLM to serve")
        if isinstance(answer, Started):
            self._served_asynchronously = answer.engine.async_scheduling
            return True
        self._may_serve_asynchronously = False
        self._note(f"not served asynchronously, as servers do: {answer.message}")
        if not self._has_time_to_start():
            return False
        failure = self._started()
        if failure:
            self._note(f"not served: {failure}")
        return not failure

    def _serving(self) -> None:
        """One closed loop after the other while time is left."""
        for index, users in enumerate(SERVING_USERS):
            left_s = self._setting.budget.left_s / (len(SERVING_USERS) - index)
            load = self._load(users, left_s)
            if load is not None and load.concurrency not in {
                one.load.concurrency for one in self.run.serving
            }:
                self._served(load, left_s)

    def _load(self, users: int, most_s: float) -> ServingLoad | None:
        """A closed loop that takes about so long; None where there is no time for one."""
        limits = self._limits()
        users = min(users, limits.max_num_seqs)
        prompt = max(int(SERVED_INPUT_SHARE * limits.max_model_len), 1)
        for answer in SERVED_OUTPUT_TOKENS:
            shapes = (
                StepShape(prompts=1, prompt_tokens=min(prompt, limits.max_num_batched_tokens)),
                StepShape(decodes=users, context_tokens=prompt + answer // 2),
            )
            if prompt + answer >= limits.max_model_len or not all(map(limits.allows, shapes)):
                continue
            prompt_s, decode_s = self._expected_s(shapes)
            round_s = SLOWER_IN_SERVICE * (users * prompt_s + answer * decode_s)
            rounds = min(int(most_s / round_s), MOST_ROUNDS)
            if rounds >= LEAST_ROUNDS:
                return ServingLoad(
                    concurrency=users,
                    input_tokens=prompt,
                    output_tokens=answer,
                    length_low_ratio=SERVED_LOW_RATIO,
                    num_requests=rounds * users,
                    seed=self.run.seed,
                )
        return None

    def _expected_s(self, shapes: tuple[StepShape, StepShape]) -> tuple[float, float]:
        engine = self.run.engine
        assert engine is not None
        deployment = deployment_of(self.run.target, engine, self._setting.operators)
        session = StepSession(self.run, deployment, self._setting.tools, self._setting.plan)
        prompt_s, decode_s = session.expected(shapes).step_s.tolist()
        return prompt_s, decode_s

    def _served(self, load: ServingLoad, most_s: float) -> None:
        tools, budget = self._setting.tools, self._setting.budget
        tools.show(Progress(budget.spent_s, budget.total_s, f"serving {load.concurrency} users"))
        mark = tools.probe.mark()
        try:
            answer = self._setting.engine.ask(
                Serve(load=load, most_seconds=1.5 * most_s), timeout_s=4.0 * most_s + 60.0
            )
        except EngineDied as death:
            point = ServingPoint(
                load=load,
                async_scheduling=self._served_asynchronously,
                submit_s=0.0,
                measured_at=now(),
                failed=str(death),
            )
            self._keep(serving=(*self.run.serving, point))
            raise
        telemetry = tools.probe.since(mark)
        served = answer if isinstance(answer, Served) else None
        failed = "" if served else (answer.message if isinstance(answer, Failed) else "no answer")
        point = ServingPoint(
            load=load,
            async_scheduling=self._served_asynchronously,
            submit_s=served.submit_s if served else 0.0,
            requests=served.requests if served else (),
            steps=served.steps if served else 0,
            measured_at=now(),
            disturbed=disturbances(telemetry, ()),
            failed=failed,
            telemetry=telemetry,
        )
        self._keep(serving=(*self.run.serving, point))
        check_lives(answer)

    def _limits(self) -> EngineLimits:
        engine, memory = self.run.engine, self.run.memory
        assert engine is not None
        tokens = memory.kv_cache_tokens if memory is not None else None
        return EngineLimits(
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            kv_cache_tokens=tokens or engine.max_model_len,
            block_size=max(engine.block_size, 1),
        )

    def _notes(self) -> tuple[str, ...]:
        """What is missing or was lowered, each said once."""
        probe, found = self._setting.tools.probe, list(self.run.notes)
        found += [*probe.missing, *probe.notes]
        engine = self.run.engine
        if engine is not None and not engine.made_up_context:
            found.append("the engine takes no made-up context: what decoding steps see was computed first")
        failed = [point for point in self.run.points if point.failed]
        if failed:
            found.append(f"{len(failed)} shapes were not measured, the first: {failed[0].failed}")
        if engine is not None and not self.run.serving:
            found.append("the budget left no time for a serving run")
        return tuple(dict.fromkeys(found))

    def _note(self, line: str) -> None:
        self._keep(notes=(*self.run.notes, line))

    def _keep(self, **changes: object) -> None:
        self.run = self.run.model_copy(update=changes)
        self._setting.tools.save(self.run)


def changed_flags(before: EngineSetup, after: EngineSetup) -> str:
    """What of two engines differs, in words; empty where only the time that the start took does."""
    ours, theirs = (one.model_dump(mode="json", exclude={"start_s"}) for one in (before, after))
    return ", ".join(
        f"{name} {ours[name]}, now {theirs[name]}" for name in ours if ours[name] != theirs[name]
    )
