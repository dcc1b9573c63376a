"""How the benchmark evaluates its measurements."""

import pytest

from benchmarks.__main__ import PARTS, read
from benchmarks.contenders import MODELS, NEW_TOKENS
from benchmarks.engines import OURS as OUR_ENGINE
from benchmarks.engines import REFERENCE, RIVALS, EngineLoad
from benchmarks.measures import (
    API_WAY,
    PAGE_WAY,
    Alone,
    Load,
    OwnStart,
    PathCost,
    PathTimes,
    ShortCall,
    WayCost,
    load_of,
    median_load,
)
from benchmarks.quality import FLOAT32, Quality, quality
from benchmarks.report import (
    GUIDE,
    ORIGINAL,
    OURS,
    SAME_DTYPE,
    Api,
    Delivery,
    Engines,
    Own,
    Qualities,
    Ratio,
    Users,
)
from benchmarks.users import Answer

WHERE = ["project", "environment", "model", "own", "rivals"]


def test_all_parts_are_measured_unless_some_are_named() -> None:
    assert read(WHERE).parts == PARTS
    assert read([*WHERE, "growth"]).parts == ["growth"]


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read([*WHERE, "speed"])
    assert "'speed' is not a part of the benchmark" in capsys.readouterr().err


def load(contender: str, users: int, speed: float = 1, first_text: float = 1) -> Load:
    return Load(contender, users, speed, first_text, whole_answer=1, failures=0)


def test_tokens_per_second_count_whole_answers_until_the_last_one_ends() -> None:
    answers = [Answer(1, 4), Answer(3, 8), Answer(0, 2, "429")]
    of_two = load_of("mine", 3, answers)
    assert of_two.tokens_per_second == 2 * len(MODELS) * NEW_TOKENS / 8
    assert (of_two.first_text, of_two.whole_answer, of_two.failures) == (2, 6, 1)


def test_a_contender_whose_calls_all_fail_has_no_figures() -> None:
    with pytest.raises(RuntimeError, match="mine: 500"):
        load_of("mine", 1, [Answer(0, 1, "500")])


def test_each_figure_is_the_median_of_the_rounds() -> None:
    rounds = [load("mine", 8, speed, first) for speed, first in ((1, 9), (5, 2), (4, 3))]
    assert median_load(rounds) == load("mine", 8, 4, 3)


@pytest.mark.parametrize(
    ("value", "smaller_is_better", "reached"),
    [(1.3, False, True), (1.1, False, False), (1.1, True, True), (1.3, True, False)],
)
def test_a_goal_may_be_a_minimum_or_a_maximum(
    value: float, smaller_is_better: bool, reached: bool
) -> None:
    assert Ratio("speed", value, 1.2, smaller_is_better).reached() is reached


def test_ratios_compare_contenders_at_the_same_number_of_users() -> None:
    users = Users(
        loads=[
            *(load(OURS, number, 60, 0.5) for number in (1, 8, 32)),
            *(load(SAME_DTYPE, number, 30, 1) for number in (1, 8, 32)),
            *(load(GUIDE, number, 10, 15) for number in (1, 8, 32)),
            load(ORIGINAL, 8, 5),
        ],
        alone_auto=Alone(80, None),
        alone_float32=Alone(50, 40),
        alone_bfloat16=Alone(50, 50),
    )
    values = [ratio.value for ratio in users.ratios()]
    assert values == [6, 3, 6, 3, 30, 15, 1, 1, 12, 0.75, 1.25, 1]


def test_a_custom_page_is_compared_with_an_empty_application_and_plain_gradio() -> None:
    calls = [
        ShortCall(1, pause=1.0, launched=0.025, on_two_replicas=0.038),
        ShortCall(8, pause=None, launched=0.025, on_two_replicas=0.045),
    ]
    start, now_and_then, at_once = Own(OwnStart(project=12, empty=10), calls).ratios()
    assert (start.value, start.reached()) == (1.2, True)
    assert (round(now_and_then.value), now_and_then.reached()) == (13, True)
    assert (round(at_once.value), at_once.reached()) == (20, False)
    assert "8 users, all at once" in at_once.measure


def test_the_api_is_compared_with_the_page() -> None:
    costs = Api(page=WayCost(0.2, [0.1, 0.2, 0.3]), v1=WayCost(0.08, [0.08, 0.05, 0.09]))
    [ratio] = costs.ratios()
    assert (round(ratio.value, 3), ratio.reached()) == (0.4, True)
    assert "| `/v1` | 0.080 | 0.080, 0.050, 0.090 |" in costs.tables()


def test_the_delivery_cost_of_an_answer_is_listed_by_process() -> None:
    page = PathCost(PAGE_WAY, {"the page": 0.02, "the proxy": 0.01}, [0.03, 0.02, 0.04])
    api = PathCost(API_WAY, {"the page": 0.01, "the proxy": 0.01}, [0.02, 0.02, 0.02])
    times = PathTimes([0.9, 0.96, 0.97], [0.1, 0.2, 0.3], [19, 21, 22])
    part = Delivery([page, api], times)
    share, crowd = part.ratios()
    assert (share.value, share.reached()) == (0.96, True)
    assert (crowd.value, crowd.reached()) == (21, True)
    assert "| the page | 0.0200 | 0.0100 | 0.0300 | 0.0300, 0.0200, 0.0400 |" in part.tables()


def test_the_engine_is_compared_with_its_best_rival_at_equal_requests_and_threads() -> None:
    slow, fast = RIVALS
    loads = [
        EngineLoad(OUR_ENGINE, 1, 8, tokens_per_second=90, tokens_per_cpu_second=60),
        EngineLoad(REFERENCE, 1, 8, tokens_per_second=900, tokens_per_cpu_second=900),
        EngineLoad(slow, 1, 8, tokens_per_second=50, tokens_per_cpu_second=80),
        EngineLoad(fast, 1, 8, tokens_per_second=100, tokens_per_cpu_second=40),
        *(EngineLoad(name, 2, 32, 10, 10) for name in (OUR_ENGINE, slow, fast)),
    ]
    by_clock, by_cpu, *more = Engines(loads, []).ratios()
    assert (by_clock.value, by_clock.reached()) == (0.9, False)
    assert by_cpu.value == 0.75
    assert [ratio.value for ratio in more] == [1, 1]


def test_quality_is_perplexity_and_the_share_of_equal_top_tokens() -> None:
    reference: list[tuple[int, float | None]] = [(1, -1.0), (2, -1.0), (3, -1.0), (4, -1.0)]
    read: list[tuple[int, float | None]] = [(1, 0.0), (2, 0.0), (3, 0.0), (5, 0.0)]
    assert quality("mine", read, reference) == Quality("mine", 1.0, 0.75)
    silent: list[tuple[int, float | None]] = [(token, None) for token, _ in reference]
    assert quality("silent", silent, reference) == Quality("silent", None, 1.0)


def test_quality_is_compared_with_float32_and_the_best_rival() -> None:
    slow, fast = RIVALS
    measured = [Quality(FLOAT32, 20, 1), Quality(OUR_ENGINE, 20.5, 0.9)]
    part = Qualities([*measured, Quality(slow, None, 0.8), Quality(fast, 24, 0.96)])
    perplexity, agreement = part.ratios()
    assert (perplexity.value, perplexity.reached()) == (1.025, True)
    assert (agreement.value, agreement.reached()) == (0.9 / 0.96, False)
    assert f"| {slow} | not reported | 80.0% |" in part.tables()
