using System.IO.Hashing;
using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data;

/// <summary>
/// One global batch while it is put together: takes up samples or packs in the order of the plan and cuts out one rank's share. What a batch
/// holds and how it is numbered does not depend on the layout.
/// </summary>
/// <param name="layout">The rank's layout.</param>
internal sealed class BatchRows(BatchLayout layout)
{
    private readonly List<EncodedSample> _samples = [];
    private readonly List<long> _firstTokens = [];
    private readonly List<int> _begins = [0];
    private readonly XxHash64 _hash = new();
    private long _numTokens;
    private double _targetWeight;

    /// <summary>Samples or packs taken up.</summary>
    public int Count => _begins.Count - 1;

    /// <summary>Takes up one sample, or one pack of samples.</summary>
    /// <param name="number">Its number in the plan.</param>
    /// <param name="members">Numbers of its samples.</param>
    /// <param name="samples">Where they are read.</param>
    public void Add(int number, ReadOnlySpan<int> members, IReadOnlyList<EncodedSample> samples)
    {
        _hash.Append(MemoryMarshal.AsBytes([number]));
        foreach (var member in members) AddSample(samples[member]);
        _begins.Add(_samples.Count);
    }

    /// <summary>This rank's share.</summary>
    /// <param name="index">Index of the global batch in the run.</param>
    /// <exception cref="ConfigException">DATA020: no sample has a token to learn.</exception>
    public GlobalBatch ToBatch(long index)
    {
        if (_targetWeight <= 0)
            throw new ConfigException("DATA020", $"global batch {index} ({Count} samples) has no token with a loss weight above 0; check the loss scale and " +
                "the answers of the data set.");
        var numMicroBatches = NumMicroBatches();
        var perRank = numMicroBatches / layout.DataParallelSize;
        var microBatches = new MicroBatch[perRank];
        for (var m = 0; m < perRank; m++) microBatches[m] = BuildMicroBatch(layout.DataParallelRank * perRank + m);
        return new GlobalBatch(index, microBatches, numMicroBatches, _targetWeight, Count, _hash.GetCurrentHashAsUInt64())
        {
            FirstMicroBatchIndex = layout.DataParallelRank * perRank,
        };
    }

    private void AddSample(EncodedSample sample)
    {
        _samples.Add(sample);
        _firstTokens.Add(_numTokens);
        _numTokens += sample.Length;
        _targetWeight += sample.TargetWeight;
        _hash.Append(MemoryMarshal.AsBytes(sample.TokenIds.AsSpan()));
    }

    // A short batch still gives every rank the same number of micro-batches: expert-parallel ranks enter collectives together.
    private int NumMicroBatches()
    {
        var needed = (Count + layout.MicroBatchSize - 1) / layout.MicroBatchSize;
        return (needed + layout.DataParallelSize - 1) / layout.DataParallelSize * layout.DataParallelSize;
    }

    private MicroBatch BuildMicroBatch(int globalMicroBatch)
    {
        var begin = globalMicroBatch * layout.MicroBatchSize;
        var isFiller = begin >= Count;
        var end = isFiller ? 1 : Math.Min(begin + layout.MicroBatchSize, Count);
        var members = isFiller ? 0.._begins[1] : _begins[begin].._begins[end];
        return MicroBatchBuilder.Build(
            CollectionsMarshal.AsSpan(_samples)[members], CollectionsMarshal.AsSpan(_firstTokens)[members], _numTokens, layout, masked: isFiller);
    }
}
