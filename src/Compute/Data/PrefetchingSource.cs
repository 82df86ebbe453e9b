using System.Diagnostics;
using System.Runtime.ExceptionServices;

namespace Megatron.Compute.Data;

/// <summary>
/// Prepares the next global batches on threads of its own while the rank computes (<c>num_workers</c>). Batches come out in order, and are those of
/// the source whatever the number of threads. A failure comes out with the batch that it belongs to.
/// </summary>
public sealed class PrefetchingSource : IGlobalBatchSource, IDisposable
{
    private readonly IGlobalBatchSource _source;
    private readonly Func<GlobalBatch, GlobalBatch> _stage;
    private readonly long _end;
    private readonly int _depth;
    private readonly object _gate = new();
    private readonly Dictionary<long, (GlobalBatch? Batch, ExceptionDispatchInfo? Failure)> _ready = [];
    private readonly Thread[] _workers;
    private long _claimed;
    private long _wanted;
    private bool _isStopped;

    /// <param name="source">Gives the batches; with more than one thread its <see cref="IGlobalBatchSource.Get"/> must be safe for several.</param>
    /// <param name="numThreads">Threads, at least 1; one for a source that must be asked in order.</param>
    /// <param name="first">First batch that will be asked for.</param>
    /// <param name="end">Batch behind the last one.</param>
    /// <param name="stage">Done to each batch on the same threads; nothing when null.</param>
    public PrefetchingSource(IGlobalBatchSource source, int numThreads, long first, long end, Func<GlobalBatch, GlobalBatch>? stage = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numThreads);
        (_source, _end, _claimed, _wanted, _stage) = (source, end, first, first, stage ?? (batch => batch));
        _depth = numThreads + 1;
        _workers = [.. Enumerable.Range(0, numThreads).Select(i => new Thread(Work) { IsBackground = true, Name = $"data-{i}" })];
        foreach (var worker in _workers) worker.Start();
    }

    /// <inheritdoc/>
    public ulong PlanHash => _source.PlanHash;

    /// <inheritdoc/>
    public long NumBatchesPerEpoch => _source.NumBatchesPerEpoch;

    /// <summary>Time that <see cref="Get"/> has waited in all.</summary>
    public TimeSpan TimeWaited { get; private set; }

    /// <inheritdoc/>
    public GlobalBatch Get(long index)
    {
        var start = Stopwatch.GetTimestamp();
        lock (_gate)
        {
            if (index != _wanted) throw new InvalidOperationException($"batch {_wanted} is next, not {index}");
            (GlobalBatch? Batch, ExceptionDispatchInfo? Failure) next;
            while (!_ready.Remove(index, out next)) Monitor.Wait(_gate);
            _wanted++;
            Monitor.PulseAll(_gate);
            TimeWaited += Stopwatch.GetElapsedTime(start);
            next.Failure?.Throw();
            return next.Batch ?? throw new InvalidOperationException($"batch {index} was not prepared");
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (_gate)
        {
            _isStopped = true;
            Monitor.PulseAll(_gate);
        }
        foreach (var worker in _workers) worker.Join();
        foreach (var staged in _ready.Values.SelectMany(next => next.Batch?.Staged ?? [])) staged.Dispose();
        _ready.Clear();
        (_source as IDisposable)?.Dispose();
    }

    private void Work()
    {
        while (TryClaim(out var index))
        {
            (GlobalBatch? Batch, ExceptionDispatchInfo? Failure) result;
            try
            {
                result = (_stage(_source.Get(index)), null);
            }
            catch (Exception e)
            {
                result = (null, ExceptionDispatchInfo.Capture(e)); // thrown where the batch is asked for
            }
            lock (_gate)
            {
                _ready.Add(index, result);
                Monitor.PulseAll(_gate);
            }
            if (result.Failure is not null) return;
        }
    }

    private bool TryClaim(out long index)
    {
        lock (_gate)
        {
            while (!_isStopped && _claimed < _end && _claimed >= _wanted + _depth) Monitor.Wait(_gate);
            index = _claimed;
            if (_isStopped || _claimed >= _end) return false;
            _claimed++;
            return true;
        }
    }
}
