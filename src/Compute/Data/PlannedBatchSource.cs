using System.IO.Hashing;
using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data;

/// <summary>How the last, incomplete global batch of a source is treated.</summary>
public enum LastBatch
{
    /// <summary>Completed from the next epoch: the source never ends (training; evaluation cycled to <c>eval_iters</c>).</summary>
    ContinueWithNextEpoch,

    /// <summary>Left short: the source is one pass over the samples (<c>eval_iters -1</c>).</summary>
    Short,
}

/// <summary>
/// Global batches of encoded samples held in memory. Rank r of R takes the micro-batches r·M … (r+1)·M − 1 of the global batch, where
/// M = global_batch_size / (micro_batch_size · R) and micro-batch g holds the samples g·micro_batch_size … in the plan's order: the ranks'
/// shares one after another are the global batch, in every layout.
/// </summary>
public sealed class PlannedBatchSource : IGlobalBatchSource
{
    private readonly IReadOnlyList<EncodedSample> _samples;
    private readonly BatchPlan _plan;
    private readonly BatchLayout _layout;
    private readonly LastBatch _lastBatch;

    /// <exception cref="ConfigException">CFG100: global batch size is no multiple of micro-batch size times data-parallel size.</exception>
    public PlannedBatchSource(IReadOnlyList<EncodedSample> samples, BatchPlan plan, BatchLayout layout, LastBatch lastBatch)
    {
        var perStep = layout.MicroBatchSize * layout.DataParallelSize;
        if (plan.GlobalBatchSize % perStep != 0)
            throw new ConfigException("CFG100", $"global_batch_size = {plan.GlobalBatchSize} is not a multiple of micro_batch_size × data-parallel " +
                $"size = {layout.MicroBatchSize} × {layout.DataParallelSize}; choose a multiple of {perStep}.");
        _samples = samples;
        _plan = plan;
        _layout = layout;
        _lastBatch = lastBatch;
        PlanHash = plan.Hash(samples);
    }

    /// <inheritdoc/>
    public ulong PlanHash { get; }

    /// <inheritdoc/>
    public long NumBatchesPerEpoch => _plan.NumBatches(1);

    /// <inheritdoc/>
    /// <exception cref="ConfigException">DATA020: no sample of the global batch has a token to learn.</exception>
    public GlobalBatch Get(long index)
    {
        var indices = _lastBatch == LastBatch.Short ? _plan.SampleIndicesOfOnePass(index) : _plan.SampleIndices(index);
        var samples = new EncodedSample[indices.Length];
        var firstTokens = new long[indices.Length];
        var numTokens = 0L;
        var targetWeight = 0.0;
        for (var i = 0; i < indices.Length; i++)
        {
            samples[i] = _samples[indices[i]];
            firstTokens[i] = numTokens;
            numTokens += samples[i].Length;
            targetWeight += samples[i].TargetWeight;
        }
        if (targetWeight <= 0)
            throw new ConfigException("DATA020", $"global batch {index} ({indices.Length} samples, first index {indices[0]}) has no token with a " +
                "loss weight above 0; check the loss scale and the answers of the data set.");

        var numMicroBatches = NumMicroBatches(indices.Length);
        var perRank = numMicroBatches / _layout.DataParallelSize;
        var microBatches = new MicroBatch[perRank];
        for (var m = 0; m < perRank; m++)
            microBatches[m] = BuildMicroBatch(_layout.DataParallelRank * perRank + m, samples, firstTokens, numTokens);
        return new GlobalBatch(index, microBatches, numMicroBatches, targetWeight, indices.Length, Hash(indices, samples))
        {
            FirstMicroBatchIndex = _layout.DataParallelRank * perRank,
        };
    }

    // A short batch still gives every rank the same number of micro-batches: expert-parallel ranks enter collectives together.
    private int NumMicroBatches(int numSamples)
    {
        var needed = (numSamples + _layout.MicroBatchSize - 1) / _layout.MicroBatchSize;
        return (needed + _layout.DataParallelSize - 1) / _layout.DataParallelSize * _layout.DataParallelSize;
    }

    private MicroBatch BuildMicroBatch(int globalMicroBatch, EncodedSample[] samples, long[] firstTokens, long numTokens)
    {
        var begin = globalMicroBatch * _layout.MicroBatchSize;
        if (begin >= samples.Length)
            return MicroBatchBuilder.Build(samples.AsSpan(0, 1), firstTokens, numTokens, _layout, masked: true);
        var count = Math.Min(_layout.MicroBatchSize, samples.Length - begin);
        return MicroBatchBuilder.Build(samples.AsSpan(begin, count), firstTokens.AsSpan(begin, count), numTokens, _layout, masked: false);
    }

    private static ulong Hash(int[] indices, EncodedSample[] samples)
    {
        var hash = new XxHash64();
        for (var i = 0; i < indices.Length; i++)
        {
            hash.Append(MemoryMarshal.AsBytes(indices.AsSpan(i, 1)));
            hash.Append(MemoryMarshal.AsBytes(samples[i].TokenIds.AsSpan()));
        }
        return hash.GetCurrentHashAsUInt64();
    }
}
