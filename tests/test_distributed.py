"""Dask: sums over partitions are those in memory, whatever the partitions, the workers, and what happens to them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import pandas as pd
import pytest

from bayesgmm.core import kernel
from bayesgmm.core.blocks import Accumulate, Draw, LogLikelihoods, moments
from bayesgmm.core.parameters import MixtureParameters, factors_from_covariances
from bayesgmm.exceptions import ClusterError, DataError

da = pytest.importorskip("dask.array", reason="Dask is not installed: pip install 'bayesgmm[dask]'")
dd = pytest.importorskip("dask.dataframe", reason="Dask is not installed: pip install 'bayesgmm[dask]'")
distributed = pytest.importorskip("distributed", reason="distributed is not installed: pip install 'bayesgmm[dask]'")

from bayesgmm.distributed import DaskBlocks, connected, is_dask  # noqa: E402

# Sums of 1,000 rows in another order: rounding of some 1e-16 × √1000 of the largest term.
RELATIVE = 1e-12


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    return np.concatenate([rng.normal(0, 1, (600, 3)), rng.normal(4, 2, (400, 3))])[rng.permutation(1000)]


@pytest.fixture(scope="module")
def weights(rows):
    return np.random.default_rng(4).integers(0, 3, len(rows)).astype(float)


@pytest.fixture(scope="module")
def parameters():
    means = np.array([[0.2, 0.0, -0.1], [3.5, 4.0, 4.2]])
    return MixtureParameters(
        np.array([0.5, 0.5]), means, factors_from_covariances(np.array([np.eye(3), 3 * np.eye(3)]))
    )


def check(found, X, v, parameters):
    """Sums over blocks against the pass in memory."""
    expected = kernel.accumulate(X, parameters, v)
    for name in ("log_likelihood", "total_weight", "counts", "first", "second"):
        got, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(got, wanted, rtol=RELATIVE, atol=RELATIVE * np.abs(wanted).max(), err_msg=name)


UNEVEN = ((1, 0, 500, 0, 299, 200), (3,))


def collections(rows):
    """The same rows in ten ways."""
    array, frame = da.from_array(rows, chunks=(250, 3)), pd.DataFrame(rows, columns=list("abc"))
    whole, apart = dd.from_pandas(frame, npartitions=4), da.from_array(rows, chunks=(300, 2))
    yield "even", array
    yield "features apart", da.from_array(rows, chunks=(400, 1))
    yield "uneven and empty", array.rechunk(UNEVEN)
    yield "one partition", da.from_array(rows, chunks=-1)
    yield "unknown sizes", array[array[:, 0] > -1e9]
    yield "unknown sizes, features apart", apart[apart[:, 1] > -1e9]
    yield "computed", (array - 1.5) * 2 / 2 + 1.5
    yield "frame", whole
    yield "frame with an empty partition", dd.concat([whole, whole[whole.a > 1e9]], interleave_partitions=True)
    yield "arrow types", dd.from_pandas(frame.convert_dtypes(dtype_backend="pyarrow"), npartitions=3)


NAMES = [name for name, _ in collections(np.zeros((1000, 3)))]


@pytest.fixture
def here(monkeypatch):
    """No client: Dask's threads of this process."""
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)


@pytest.mark.parametrize("name", NAMES)
def test_sums_here_are_those_in_memory(name, rows, parameters, here):
    check(DaskBlocks(dict(collections(rows))[name]).total(Accumulate(parameters)), rows, None, parameters)


@pytest.mark.parametrize("name", NAMES)
def test_sums_on_a_cluster_are_those_in_memory_persisted_or_not(name, rows, parameters, client):
    X = dict(collections(rows))[name]
    lazily, held = (DaskBlocks(each).total(Accumulate(parameters)) for each in (X, X.persist()))
    check(held, rows, None, parameters)
    assert held.log_likelihood == lazily.log_likelihood
    np.testing.assert_array_equal(held.second, lazily.second)


def test_the_same_bits_wherever_it_runs(rows, parameters, client, monkeypatch):
    blocks = DaskBlocks(da.from_array(rows, chunks=(37, 3)).persist(workers=sorted(client.nthreads())[:1]))
    on_one = blocks.total(Accumulate(parameters))
    on_two = DaskBlocks(da.from_array(rows, chunks=(37, 3))).total(Accumulate(parameters))
    monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: None)
    on_threads = DaskBlocks(da.from_array(rows, chunks=(37, 3))).total(Accumulate(parameters))
    for found in (on_two, on_threads):
        assert found.log_likelihood == on_one.log_likelihood
        np.testing.assert_array_equal(found.second, on_one.second)


@pytest.mark.parametrize("kind", ["array", "ndarray", "of other chunks", "unknown sizes", "series"])
def test_weights(kind, rows, weights, parameters, client):
    X, v = da.from_array(rows, chunks=(300, 3)), da.from_array(weights, chunks=300)
    if kind == "ndarray":
        v = weights
    elif kind == "of other chunks":
        v = v.rechunk(170)
    elif kind == "unknown sizes":
        X, v = X[X[:, 0] > -1e9], v[X[:, 0] > -1e9]
    elif kind == "series":
        frame = dd.from_pandas(pd.DataFrame(rows, columns=list("abc")).assign(v=weights), npartitions=3)
        X, v = frame[list("abc")], frame.v
    check(DaskBlocks(X, v).total(Accumulate(parameters)), rows, weights, parameters)


def test_moments_subsample_and_many_log_likelihoods(rows, weights, parameters, here):
    blocks = DaskBlocks(da.from_array(rows, chunks=(130, 3)), weights)
    found = blocks.total(moments)
    assert found.n_rows == 1000
    np.testing.assert_allclose(found.mean, np.average(rows, axis=0, weights=weights), rtol=1e-12)
    centred = rows - found.mean
    np.testing.assert_allclose(found.scatter, (centred * weights[:, None]).T @ centred, rtol=1e-11)
    many = blocks.total(LogLikelihoods([parameters, parameters]))
    np.testing.assert_allclose(many, kernel.accumulate(rows, parameters, weights).log_likelihood, rtol=1e-12)
    drawn = blocks.total(Draw(40, 1)).rows
    assert len(np.unique(drawn, axis=0)) == 40
    assert set(map(tuple, drawn)) <= set(map(tuple, rows[weights > 0]))


def test_rows_stay_where_they_are(client, parameters):
    X = da.random.default_rng(0).normal(size=(400_000, 3), chunks=(50_000, 3)).persist()
    blocks = DaskBlocks(X)
    blocks.total(Accumulate(parameters))
    before = _bytes_sent(client)
    blocks.total(Accumulate(parameters))
    # 9.6 MB of rows; each partition's sums are 27 numbers of 8 bytes in a message of about 1 kB
    assert _bytes_sent(client) - before < 100_000


def _bytes_sent(client):
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


def test_tasks_have_names_on_the_dashboard(client, rows, parameters):
    DaskBlocks(da.from_array(rows, chunks=(100, 3))).total(Accumulate(parameters))
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert {"bayesgmm-accumulate", "bayesgmm-parameters", "bayesgmm-sum"} <= set(names)


def test_a_value_that_is_no_number_is_named_by_its_place(rows, parameters, client):
    wrong = rows.copy()
    wrong[510, 1], wrong[900, 0] = np.nan, np.inf
    array = da.from_array(wrong, chunks=(250, 3))
    with pytest.raises(DataError, match=r"NaN: partition 2, row 10, column 'x1' \(1 such value in"):
        DaskBlocks(array).total(Accumulate(parameters))
    with pytest.raises(DataError, match=r"infinity: partition 1, row 50, column 'x0'"):
        DaskBlocks(array[750:].rechunk((100, 3))).total(moments)
    frame = dd.from_pandas(pd.DataFrame(wrong, columns=list("abc")), npartitions=4)
    with pytest.raises(DataError, match="partition 2, row 10, column 'b'"):
        DaskBlocks(frame).total(Accumulate(parameters))


def test_finite_values_whose_sum_overflows_are_no_fault(here):
    X = da.from_array(np.full((4, 2), 1e308), chunks=(2, 2))
    assert DaskBlocks(X).total(lambda X, v, block: np.array(len(X))) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: da.ones(5, chunks=2), "2D"),
        (lambda: da.ones((4, 2, 2)), "2D"),
        (lambda: da.ones((4, 0)), "width"),
        (lambda: da.ones((4, 2), dtype=complex), "complex128"),
        (lambda: da.from_array(np.array([["a"], ["b"]])), "convert string"),
        (lambda: dd.from_pandas(pd.DataFrame({"a": [1.0], "b": ["x"], "c": pd.to_datetime(["2020"])}), 1), "'b', 'c'"),
        (lambda: dd.from_pandas(pd.Series([1.0]), 1), "Series"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused_before_anything_runs(make, message):
    with pytest.raises(DataError, match=message):
        DaskBlocks(make())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda X, v: v[:-1], "999"),
        (lambda X, v: np.ones(7), "expected"),
        (lambda X, v: da.from_array(np.ones((1000, 2))), "one column"),
        (lambda X, v: v.rechunk(500)[v.rechunk(500) >= 0], "2 partitions, and X 4"),
        (lambda X, v: v[v > 0], "rows and .* weights"),
        (lambda X, v: da.where(da.arange(1000, chunks=250) == 260, -1.0, v), "partition 1, row 10 has -1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message, rows, parameters, here):
    X, v = da.from_array(rows, chunks=(250, 3)), da.from_array(np.arange(1000.0), chunks=250)
    with pytest.raises(DataError, match=message):
        DaskBlocks(X, weights(X, v)).total(Accumulate(parameters))
    with pytest.raises(DataError, match="unknown sizes"):
        DaskBlocks(X[X[:, 0] > 0], np.ones(1000))


def test_float32_is_read_as_it_is(rows, parameters, here):
    narrow = rows.astype(np.float32)

    def kind(X, v, block):
        assert X.dtype == np.float32
        return len(X)

    blocks = DaskBlocks(da.from_array(narrow, chunks=(250, 3)))
    assert blocks.total(kind) == 1000
    check(blocks.total(Accumulate(parameters)), narrow.astype(float), None, parameters)


def test_no_rows_at_all(rows, parameters, here):
    X = da.from_array(rows, chunks=(250, 3))
    with pytest.raises(DataError, match="no rows"):
        DaskBlocks(X[X[:, 0] > 1e9]).total(Accumulate(parameters))


def _broken(block, block_info=None):
    if block_info and block_info[0]["chunk-location"][0] == 2:
        raise OSError("the file ends here")
    return block


def test_a_partition_that_cannot_be_read_is_named(rows, parameters, client):
    X = da.from_array(rows, chunks=(250, 3)).map_blocks(_broken, dtype=float)
    with pytest.raises(DataError, match=r"partition 2 .* cannot be read: OSError: the file ends here"):
        DaskBlocks(X).total(Accumulate(parameters))


def test_an_error_of_a_task_is_not_blamed_on_the_data(rows, here):
    def divide(X, v, block):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        DaskBlocks(da.from_array(rows, chunks=(500, 3))).total(divide)


class Kill:
    """A pass during which the worker dies that does block 1: ``times`` times in all."""

    def __init__(self, parameters, folder, times):
        self.parameters, self.folder, self.times = parameters, folder, times

    def __call__(self, X, v, block):
        died = len(os.listdir(self.folder))
        if block == 1 and died < self.times:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return kernel.accumulate(X, self.parameters, v)


def test_a_worker_that_dies_does_not_show(rows, parameters, client, tmp_path):
    X = da.from_array(rows, chunks=(100, 3)).persist()
    blocks = DaskBlocks(X)
    expected = blocks.total(Accumulate(parameters))
    found = blocks.total(Kill(parameters, tmp_path, 1))
    assert os.listdir(tmp_path) == ["0"]
    assert found.log_likelihood == expected.log_likelihood
    np.testing.assert_array_equal(found.second, expected.second)


def test_workers_of_this_machine_leave_ctrl_c_to_us(client, rows, parameters):
    # a terminal sends it to all processes of a command
    workers = client.run(os.getpid)
    for pid in workers.values():
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    check(DaskBlocks(da.from_array(rows, chunks=(100, 3))).total(Accumulate(parameters)), rows, None, parameters)
    assert client.run(os.getpid) == workers


def test_work_that_workers_die_of_is_given_up(rows, parameters, client, tmp_path):
    def allow(dask_scheduler, deaths):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, deaths
        return before

    usual = client.run_on_scheduler(allow, deaths=0)
    try:
        with pytest.raises(
            ClusterError, match=r"1 worker died at work, .* partition \d in hand; .* make the partitions smaller"
        ):
            DaskBlocks(da.from_array(rows, chunks=(100, 3))).total(Kill(parameters, tmp_path, 99))
    finally:
        client.run_on_scheduler(allow, deaths=usual)


def test_a_worker_out_of_memory_says_which_partition(rows, client):
    def hoard(X, v, block):
        return np.ones(10**15) if block == 3 else X.sum(axis=0)

    with pytest.raises(ClusterError, match=r"out of memory on partition 3 \(100 rows\): make the partitions smaller"):
        DaskBlocks(da.from_array(rows, chunks=(100, 3))).total(hoard)


def test_a_scheduler_that_is_not_there(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for address, message in [
        (f"tcp://127.0.0.1:{free}", "no Dask scheduler answers at .*refused"),
        ("nowhere", "no address"),
        ("tcp://1.2.3.4", "no address"),
        ("tcp://1.2.3.4:99999", "no address"),
    ]:
        begin = time.monotonic()
        with pytest.raises(ClusterError, match=message), connected(address):
            pass
        assert time.monotonic() - begin < 5
    # something listens there and says nothing: 5 s are waited, here 1
    monkeypatch.setattr("bayesgmm.distributed.CONNECT_SECONDS", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ClusterError, match="no Dask scheduler answers .*timed out"),
        connected(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


def test_something_else_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            with server.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        greeter = threading.Thread(target=greet)
        greeter.start()
        with (
            pytest.raises(ClusterError, match="is no Dask scheduler"),
            connected(f"127.0.0.1:{server.getsockname()[1]}"),
        ):
            pass
        greeter.join()


def test_a_scheduler_that_is_there(client, rows, parameters):
    with connected(client.scheduler.address) as second:
        check(DaskBlocks(da.from_array(rows)).total(Accumulate(parameters)), rows, None, parameters)
        assert second.nthreads()


def test_other_things_are_no_dask(rows):
    assert not is_dask(rows)
    assert not is_dask(pd.DataFrame(rows))
    assert is_dask(da.from_array(rows))


def test_a_cluster_without_workers_is_waited_for_and_given_up(rows, parameters, monkeypatch):
    monkeypatch.setattr("bayesgmm.distributed.PATIENCE_SECONDS", 0.5)
    with connected(n_workers=0) as empty:
        monkeypatch.setattr("bayesgmm.distributed._client_of", lambda collection: empty)
        with pytest.raises(ClusterError, match="has had no worker for 0.5 s"):
            DaskBlocks(da.from_array(rows)).total(Accumulate(parameters))
