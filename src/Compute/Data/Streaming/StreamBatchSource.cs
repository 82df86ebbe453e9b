using System.Runtime.ExceptionServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data.Streaming;

/// <summary>
/// Global batches of data that are read while training (<c>streaming</c>): rows from a <see cref="RowStream"/>, encoded window by window, packed when
/// asked for, epoch after epoch without end. Memory is bounded by the shuffle buffer, one window and the longest rows. Batches must be asked for one
/// after another; each carries the cursor from which the stream goes on behind it. What a batch holds does not depend on the layout nor on the
/// number of threads.
/// </summary>
internal sealed class StreamBatchSource : IGlobalBatchSource, IDisposable
{
    private const int RowsPerStep = 256;
    private const int RowsOfJudgement = 1000;

    private readonly StreamPlan _plan;
    private readonly BatchLayout _layout;
    private readonly WindowPacker? _packer;
    private readonly DroppedRows _dropped;
    private readonly DataNotices _notices = new();
    private readonly Dictionary<int, Waiting> _waiting = [];
    private readonly Queue<EncodedSample[]> _ready = [];
    private RowStream _rows;
    private StreamCursor _windowBegin;
    private int _numTaken;
    private int _nextNumber;
    private int _numRows;
    private long _next;
    private bool _gaveSamples;

    /// <param name="plan">What is read, and how it is encoded and packed.</param>
    /// <param name="layout">This rank's layout.</param>
    /// <param name="firstBatch">Index of the first batch that will be asked for.</param>
    /// <param name="cursor">Where the stream stood before it; the beginning when null.</param>
    public StreamBatchSource(StreamPlan plan, BatchLayout layout, long firstBatch, StreamCursor? cursor)
    {
        (_plan, _layout, _next) = (plan, layout, firstBatch);
        _packer = plan.PackingCapacity is { } capacity ? new WindowPacker(capacity, plan.PackingStrategy) : null;
        _dropped = new DroppedRows("stream", plan.Strict);
        _windowBegin = cursor ?? StreamCursor.Beginning;
        _rows = new RowStream(plan.Settings, _windowBegin.Epoch);
        _gaveSamples = _windowBegin.Draw > 0; // the part of the epoch before the cursor is not judged again
        GoTo(_windowBegin);
    }

    /// <inheritdoc/>
    public ulong PlanHash => _plan.Hash;

    /// <inheritdoc/>
    public long NumBatchesPerEpoch => long.MaxValue;

    /// <summary>Rows left out so far and why, for the user.</summary>
    public IEnumerable<string> Report => _dropped.Lines(_numRows).Concat(_notices.Lines());

    /// <inheritdoc/>
    /// <exception cref="ConfigException">The rows cannot be used: see <see cref="DroppedRows"/>; DATA020.</exception>
    public GlobalBatch Get(long index)
    {
        if (index != _next) throw new InvalidOperationException($"a stream gives batch {_next} next, not {index}");
        var rows = new BatchRows(_layout);
        for (var i = 0; i < _plan.GlobalBatchSize; i++)
        {
            while (_ready.Count == 0) ReadWindow();
            var members = _ready.Dequeue();
            _numTaken++;
            rows.Add(unchecked((int)(index * _plan.GlobalBatchSize + i)), [.. Enumerable.Range(0, members.Length)], members);
        }
        _next++;
        return rows.ToBatch(index) with { NextCursor = (_windowBegin with { NumTaken = _numTaken }).ToString() };
    }

    /// <inheritdoc/>
    public void Dispose() => _rows.Dispose();

    /// <summary>Encodes and packs the next window; the state before it is what a cursor names.</summary>
    private void ReadWindow()
    {
        _windowBegin = new StreamCursor(_rows.Epoch, _rows.NumDrawn, 0, _packer is null ? [] : [.. _packer.Pending.Select(item => _waiting[item.Sample].Place(item.NumWaits))]);
        _numTaken = 0;
        var numSamples = 0;
        do numSamples += ReadStep();
        while (_packer is not null && numSamples < Packing.WindowSize);
        if (_packer is null) return;
        foreach (var pack in _packer.Close(isLast: false))
            _ready.Enqueue(Array.ConvertAll(pack, number =>
            {
                _waiting.Remove(number, out var member);
                return member.Sample;
            }));
    }

    /// <summary>Draws and encodes some rows; the number of their samples.</summary>
    private int ReadStep()
    {
        var rows = new List<(long Draw, SourceRow Row)>(RowsPerStep);
        var epoch = _rows.Epoch;
        while (rows.Count < RowsPerStep && _rows.TryDraw(out var row)) rows.Add((_rows.NumDrawn - 1, row));
        var isEnd = rows.Count < RowsPerStep;
        var count = 0;
        var encoded = EncodeAll(rows);
        for (var i = 0; i < encoded.Length; i++)
        {
            Account(encoded[i]);
            for (var part = 0; part < encoded[i].Samples.Length; part++, count++) TakeUp(new Waiting(epoch, rows[i].Draw, part, encoded[i].Samples[part]), numWaits: 0);
        }
        _gaveSamples |= count > 0;
        if (_numRows >= RowsOfJudgement) _dropped.Check(_numRows);
        if (isEnd) BeginNextEpoch();
        return count;
    }

    private void BeginNextEpoch()
    {
        if (!_gaveSamples) _dropped.Check(_numRows);
        if (!_gaveSamples) throw new ConfigException("DATA021", $"the stream of {string.Join(", ", _plan.Settings.Sets.Select(set => set.Path))} gives no sample; check the data.");
        _gaveSamples = false;
        var next = new RowStream(_plan.Settings, _rows.Epoch + 1);
        _rows.Dispose();
        _rows = next;
    }

    private void TakeUp(Waiting sample, int numWaits)
    {
        if (_packer is null)
        {
            _ready.Enqueue([sample.Sample]);
            return;
        }
        var number = _nextNumber++;
        _waiting.Add(number, sample);
        _packer.Add(new PendingSample(number, sample.Sample.Length, numWaits));
    }

    private void Account(StreamRow row)
    {
        _numRows++;
        _notices.Add(row.Notices.Counts);
        if (row.Fatal is { } fatal) throw new ConfigException([fatal]);
        if (row.Problem is { } problem) _dropped.Add(problem);
    }

    private StreamRow[] EncodeAll(List<(long Draw, SourceRow Row)> rows)
    {
        var encoded = new StreamRow[rows.Count];
        try
        {
            Parallel.For(0, rows.Count, new ParallelOptions { MaxDegreeOfParallelism = _plan.NumThreads }, i => encoded[i] = _plan.Encode(rows[i].Row));
        }
        catch (AggregateException e)
        {
            ExceptionDispatchInfo.Throw(e.InnerExceptions[0]);
        }
        return encoded;
    }

    /// <summary>Draws up to the cursor without encoding, except the samples that waited there, and gives out what was taken.</summary>
    private void GoTo(StreamCursor cursor)
    {
        var waiting = cursor.Pending.GroupBy(item => item.Epoch).ToDictionary(group => group.Key, group => group.ToLookup(item => item.Draw));
        var found = new Dictionary<StreamCursor.Waiting, EncodedSample>();
        foreach (var (epoch, draws) in waiting)
        {
            if (epoch == cursor.Epoch) continue;
            using var earlier = new RowStream(_plan.Settings, epoch);
            Draw(earlier, draws.Max(group => group.Key) + 1, draws, found);
        }
        Draw(_rows, cursor.Draw, waiting.GetValueOrDefault(cursor.Epoch), found);
        foreach (var item in cursor.Pending)
            TakeUp(new Waiting(item.Epoch, item.Draw, item.Part, found.TryGetValue(item, out var sample) ? sample : throw Changed()), item.NumWaits);
        if (cursor.NumTaken == 0) return;
        ReadWindow();
        for (; _numTaken < cursor.NumTaken; _numTaken++)
            if (!_ready.TryDequeue(out _)) throw Changed();
    }

    private void Draw(RowStream rows, long end, ILookup<long, StreamCursor.Waiting>? waiting, Dictionary<StreamCursor.Waiting, EncodedSample> found)
    {
        while (rows.NumDrawn < end)
        {
            if (!rows.TryDraw(out var row)) throw Changed();
            if (waiting is null) continue;
            foreach (var item in waiting[rows.NumDrawn - 1])
                if (_plan.Encode(row).Samples is var samples && item.Part < samples.Length) found[item] = samples[item.Part];
        }
    }

    private static ConfigException Changed() => new("DATA030",
        "the stream of data ends before the checkpoint's position: files changed; restore them, or give --no_load_rng true to begin the stream anew.");

    /// <summary>A sample that is packed with this window or a later one.</summary>
    private readonly record struct Waiting(long Epoch, long Draw, int Part, EncodedSample Sample)
    {
        public StreamCursor.Waiting Place(int numWaits) => new(Epoch, Draw, Part, numWaits);
    }
}
