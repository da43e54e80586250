"""What is refused, and that the refusal names what and how much."""

from typing import Any

import numpy as np
import pytest

from embedding_store import Optimizer, ServingTable, StoreError, Table, hash_strings, mix_ids
from tests.store.helpers import admit, ids_of, make, plain

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("lr", NAN, "nan"),
        ("lr", INF, "inf"),
        ("lr", -0.5, "-0.5"),
        ("lr", 1e300, "must be finite"),
        ("l2", NAN, "nan"),
        ("l2", -1.0, "-1.0"),
        ("eps", NAN, "nan"),
        ("eps", -1e-3, "-0.001"),
        ("beta1", 1.0, "1.0"),
        ("beta2", -0.1, "-0.1"),
        ("beta2", NAN, "nan"),
        ("initial_accumulator", -1.0, "-1.0"),
        ("initial_accumulator", INF, "inf"),
        ("init_scale", -0.1, "-0.1"),
        ("init_scale", NAN, "nan"),
        ("probability", 0.0, "0.0"),
        ("probability", 1.01, "1.01"),
        ("probability", NAN, "nan"),
        ("min_count", 0, "0"),
        ("min_count", 65_537, "65537"),
        ("dim", 0, "dim is 0 and first_order is off"),
        ("dim", -1, "-1"),
        ("dim", 16_385, "16385"),
        ("slot", -1, "-1"),
        ("ttl_s", -1, "-1"),
        ("ttl_s", 2**32, "4294967296"),
        ("initial_rows", -1, "-1"),
        ("initial_rows", 2**32, "4294967296"),
        ("optimizer", "lion", "lion"),
        ("l1", 0.5, "only ftrl"),
        ("weight_decay", -0.1, "-0.1"),
        ("weight_decay", 11.0, "from 0 to 1 / lr"),  # lr is 0.1
        ("beta", -1.0, "-1.0"),
        ("accumulator_half_life_s", 60, "only adagrad and rowwise_adagrad"),
        ("accumulator_half_life_s", -1, "-1"),
        ("accumulator_half_life_s", 2**32, "4294967296"),
        ("clip_norm", -1.0, "-1.0"),
        ("clip_norm", 1e-60, "above 0"),  # zero in float32
        ("clip_value", NAN, "nan"),
        ("clip_value", INF, "inf"),
        ("first_order_optimizer", plain("ftrl"), "first_order is off"),
    ],
)
def test_unusable_parameter_is_refused_by_name_and_value(name: str, value: Any, shown: str) -> None:
    with pytest.raises(StoreError, match=name) as refusal:
        make(**{name: value})
    assert shown in str(refusal.value)


def test_dim_and_optimizer_are_enough() -> None:
    table = Table(dim=4, optimizer=Optimizer("sgd", lr=1.0))
    rows = admit(table, ids_of(7), now_s=1)
    assert rows.shape == (1, 4)
    assert 0 < np.abs(rows).max() < 0.01
    assert table.expire(2**32 - 1, 1) == 0
    serving = ServingTable(width=table.width)
    assert (serving.dtype, len(serving)) == ("float32", 0)


def test_adaptive_optimizers_need_eps_and_sgd_does_not() -> None:
    make(optimizer="sgd", eps=0.0)
    with pytest.raises(StoreError, match="eps"):
        make(optimizer="adagrad", eps=0.0)
    with pytest.raises(StoreError, match="eps"):
        make(optimizer="adam", eps=1e-60)  # zero in float32


def test_ftrl_needs_a_divisor_and_has_no_weight_decay() -> None:
    make("ftrl", beta=0.0, initial_accumulator=0.1)
    with pytest.raises(StoreError, match=r"beta is 0\.0.* where initial_accumulator is 0"):
        make("ftrl", beta=0.0, initial_accumulator=0.0)
    with pytest.raises(StoreError, match=r"weight_decay is 0\.1.* ftrl has l2 instead"):
        make("ftrl", weight_decay=0.1)
    with pytest.raises(StoreError, match="l1 is -1"):
        make("ftrl", l1=-1.0)


def test_an_optimizer_is_one_and_of_numbers() -> None:
    wrong: Any = "sgd"
    with pytest.raises(TypeError, match=r"must be an embedding_store\.Optimizer"):
        make(first_order=True, first_order_optimizer=wrong)
    with pytest.raises(TypeError, match="lr has the wrong type"):
        Optimizer("sgd", lr=wrong)
    with pytest.raises(TypeError, match="accumulator_half_life_s has the wrong type"):
        Optimizer("adagrad", lr=0.1, accumulator_half_life_s=wrong)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint32])
def test_ids_of_another_dtype_are_refused_not_converted(dtype: type) -> None:
    table, serving = make(), ServingTable(width=4, initial_rows=0)
    ids: Any = np.ones(3, dtype)
    counts, rows = np.ones(3, np.uint32), np.ones((3, 4), np.float32)
    for call in (
        lambda: table.lookup(ids),
        lambda: table.lookup_or_admit(ids, counts, 1),
        lambda: table.apply(ids, rows),
        lambda: table.contains(ids),
        lambda: table.erase(ids),
        lambda: mix_ids(ids, ids, 1),
        lambda: serving.lookup(ids),
        lambda: serving.upsert(ids, rows),
        lambda: serving.remove(ids),
    ):
        with pytest.raises(TypeError, match=f"must have dtype uint64, not {np.dtype(dtype)}"):
            call()


@pytest.mark.parametrize("number", [-1, 2**64, 1.5, "7", np.int64(-3)])
def test_what_is_no_id_is_not_inspected(number: Any) -> None:
    with pytest.raises(StoreError, match=r"id is .*; it must be an int from 0 to 2\^64 - 1"):
        make().inspect(number)
    assert make().inspect(2**64 - 1)["state"] == "absent"


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, -1, "a slot's number must be an int from 0"),
        (1, [1], "a slot's ids must be an array"),
        (2, None, "a slot's offsets must be an array"),
        (3, np.ones(1, np.uint8), "is_counted must have dtype bool, not uint8"),
        (4, 7, "a slot's mode must be a str"),
        (5, "all", "a slot's first_n must be an int"),
    ],
)
def test_a_slot_is_refused_by_the_name_of_its_part(at: int, value: Any, said: str) -> None:
    table, out = make(), np.zeros((1, 1, 4), np.float32)
    slot: list[Any] = [0, ids_of(1), np.array([0, 1]), np.ones(1, np.bool_), "sum", 0]
    table.read([tuple(slot)], ids_of(1), 1, out)
    slot[at] = value
    wrong: Any = tuple(slot)
    with pytest.raises(TypeError, match=said):
        table.read([wrong], ids_of(1), 1, out)
    with pytest.raises(TypeError, match="a slot must be a tuple"):
        table.read([list(wrong)], ids_of(1), 1, out)  # type: ignore[list-item]


def test_versions_of_rows_are_an_array_or_none() -> None:
    rows: Any = (ids_of(1), np.ones((1, 4), np.float32), [1], *[np.ones(1, np.uint32)] * 3)
    with pytest.raises(TypeError, match="versions must be an array or None"):
        make(optimizer="sgd").put_rows(*rows)


def test_strided_and_read_only_input_is_read_correctly() -> None:
    table, plain = make(lr=1.0), make(lr=1.0)
    ids = np.arange(40, dtype=np.uint64)
    gradients = np.random.default_rng(1).normal(size=(4, 20)).astype(np.float32)
    ids.flags.writeable = False
    admit(table, ids[::2])
    table.apply(ids[::2], gradients.T)
    admit(plain, ids[::2].copy())
    plain.apply(ids[::2].copy(), np.ascontiguousarray(gradients.T))
    np.testing.assert_array_equal(table.lookup(ids[::-2][::-1]), plain.lookup(ids[1::2].copy()))
    np.testing.assert_array_equal(table.lookup(ids[::2]), plain.lookup(ids[::2].copy()))


def test_lengths_and_widths_that_do_not_fit_are_refused() -> None:
    table, serving = make(), ServingTable(width=4, initial_rows=0)
    with pytest.raises(ValueError, match=r"shape \[2, 4\], not \[3, 4\]"):
        table.apply(ids_of(1, 2), np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"\[2, 4\], not \[2, 5\]"):
        table.apply(ids_of(1, 2), np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match="dimension"):
        table.apply(ids_of(1), np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"ids and counts .* 2 and 3"):
        table.lookup_or_admit(ids_of(1, 2), np.ones(3, np.uint32), 1)
    with pytest.raises(ValueError, match="left and right"):
        mix_ids(ids_of(1), ids_of(1, 2), 0)
    with pytest.raises(ValueError, match="dimension"):
        table.lookup(np.ones((2, 2), np.uint64))
    with pytest.raises(ValueError, match="rows must have shape"):
        serving.upsert(ids_of(1), np.ones((1, 3), np.float32))
    with pytest.raises(TypeError, match="counts must have dtype uint32"):
        table.lookup_or_admit(ids_of(1), np.ones(1, np.int64), 1)
    assert len(table) == len(serving) == 0


def test_out_is_filled_and_returned_or_refused() -> None:
    table, serving = make(), ServingTable(width=4, initial_rows=0)
    ids = ids_of(1, 2)
    out = np.full((2, 4), 9, np.float32)
    assert table.lookup_or_admit(ids, np.array([1, 0], np.uint32), 1, out) is out
    assert out[0].any()
    assert not out[1].any()
    assert table.lookup(ids, out=out) is out
    assert serving.lookup(ids, out)[0] is out
    assert not out.any()
    with pytest.raises(ValueError, match=r"out must .* \[2, 4\]"):
        table.lookup(ids, np.empty((2, 3), np.float32))
    with pytest.raises(ValueError, match="C-contiguous"):
        table.lookup(ids, np.empty((2, 8), np.float32)[:, ::2])
    with pytest.raises(TypeError, match="float32"):
        table.lookup(ids, np.empty((2, 4), np.float64))
    out.flags.writeable = False
    with pytest.raises(TypeError, match="writable"):
        table.lookup(ids, out)


@pytest.mark.parametrize("now_s", [-1, 2**32, 1_700_000_000_000])
def test_time_that_cannot_be_seconds_is_refused(now_s: int) -> None:
    table = make()
    with pytest.raises(StoreError, match=f"seconds.* is {now_s}"):
        admit(table, ids_of(1), now_s=now_s)
    with pytest.raises(StoreError, match=f"seconds.* is {now_s}"):
        table.expire(now_s, 1)


def test_negative_versions_and_slices_are_refused() -> None:
    table = make()
    for call, name in (
        (lambda: table.delta(-1), "since"),
        (lambda: table.trim_tombstones(-1), "through"),
        (lambda: table.expire(1, -1), "max_rows"),
    ):
        with pytest.raises(StoreError, match=f"{name} is -1"):
            call()


def test_empty_batches_are_fine() -> None:
    table, serving = make(first_order=True), ServingTable(width=2, initial_rows=0)
    none = ids_of()
    assert table.lookup(none).shape == (0, 5)
    assert admit(table, none).shape == (0, 5)
    assert table.apply(none, np.empty((0, 5), np.float32)) == 0
    assert table.contains(none).shape == (0,)
    assert serving.lookup(none)[0].shape == (0, 2)
    serving.upsert(none, np.empty((0, 2), np.float32))
    assert table.delta(0)[1].shape == (0, 5)
    assert hash_strings([], 1).shape == mix_ids(none, none, 1).shape == (0,)


def test_masks_are_masks() -> None:
    table, replica, ids = make(), ServingTable(width=4), ids_of(10, 11, 12, 13)
    admit(table, ids[2:])
    replica.upsert(ids[2:], table.lookup(ids[2:]))
    for mask in (table.contains(ids), replica.lookup(ids)[1]):
        assert mask.dtype == np.bool_
        assert ids[~mask].tolist() == [10, 11]


def test_ids_in_an_int64_array_are_told_how_to_become_ids() -> None:
    with pytest.raises(TypeError, match=r"view\(np.uint64\)"):
        make().lookup(np.arange(3))  # type: ignore[arg-type]
