using System.IO.Hashing;
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
/// Global batches of planned samples, or of packs of them. Rank r of R takes the micro-batches r·M … (r+1)·M − 1 of the global batch, where
/// M = global_batch_size / (micro_batch_size · R) and micro-batch g holds the samples (packs) g·micro_batch_size … in the plan's order: the ranks'
/// shares one after another are the global batch, in every layout. <see cref="Get"/> may be called from any thread.
/// </summary>
public sealed class PlannedBatchSource : IGlobalBatchSource
{
    private readonly ISampleSet _samples;
    private readonly PackPlan? _packs;
    private readonly BatchPlan _plan;
    private readonly BatchLayout _layout;
    private readonly LastBatch _lastBatch;

    /// <param name="samples">The samples of one epoch.</param>
    /// <param name="packs">Packs of them, which the plan then counts; null: it counts samples.</param>
    /// <param name="plan">Which samples or packs make up which global batch.</param>
    /// <param name="layout">This rank's layout.</param>
    /// <param name="lastBatch">What becomes of an incomplete batch.</param>
    /// <exception cref="ConfigException">CFG100: global batch size is no multiple of micro-batch size times data-parallel size.</exception>
    public PlannedBatchSource(ISampleSet samples, PackPlan? packs, BatchPlan plan, BatchLayout layout, LastBatch lastBatch)
    {
        var perStep = layout.MicroBatchSize * layout.DataParallelSize;
        if (plan.GlobalBatchSize % perStep != 0)
            throw new ConfigException("CFG100", $"global_batch_size = {plan.GlobalBatchSize} is not a multiple of micro_batch_size × data-parallel " +
                $"size = {layout.MicroBatchSize} × {layout.DataParallelSize}; choose a multiple of {perStep}.");
        var numPlanned = packs?.Count ?? samples.Count;
        if (numPlanned != plan.NumSamples) throw new ArgumentException($"the plan covers {plan.NumSamples} samples or packs, got {numPlanned}");
        (_samples, _packs, _plan, _layout, _lastBatch) = (samples, packs, plan, layout, lastBatch);
        var hash = new XxHash64();
        plan.AppendTo(hash);
        samples.AppendTo(hash);
        packs?.AppendTo(hash);
        PlanHash = hash.GetCurrentHashAsUInt64();
    }

    /// <summary>The same for samples in memory, without packing.</summary>
    public PlannedBatchSource(IReadOnlyList<EncodedSample> samples, BatchPlan plan, BatchLayout layout, LastBatch lastBatch)
        : this(samples as ISampleSet ?? new MemorySamples(samples), packs: null, plan, layout, lastBatch)
    {
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
        var rows = new BatchRows(_layout);
        foreach (var planned in indices)
        {
            if (_packs is null) rows.Add(planned, [planned], _samples);
            else rows.Add(planned, _packs[planned], _samples);
        }
        return rows.ToBatch(index);
    }
}
