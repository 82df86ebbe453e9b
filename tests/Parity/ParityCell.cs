using Megatron.Compute.Configuration;

namespace Megatron.Parity.Tests;

/// <summary>A row of the parity matrix: a layout.</summary>
/// <param name="Name">As the table shows it.</param>
/// <param name="Ranks">World size.</param>
/// <param name="Config">The layout's options.</param>
public sealed record ParityCell(string Name, int Ranks, TrainingConfig Config)
{
    /// <summary>Samples of a step in the golden data.</summary>
    private const int GlobalBatchSize = 8;

    private static readonly TrainingConfig Plain = new() { UseDistributedOptimizer = false };

    /// <summary>All overlaps, and buckets that are small enough for the golden models to have several.</summary>
    private static readonly TrainingConfig Overlapped = new() { OverlapGradReduce = true, OverlapParamGather = true, DdpBucketSize = 20_000 };

    public static IReadOnlyList<string> Models => ["qwen2.5-dense", "qwen3-dense", "llama3.1-dense", "qwen3-moe", "qwen2-moe"];

    public static IReadOnlyList<ParityCell> All { get; } =
    [
        new("tp2", 2, Plain with { TensorModelParallelSize = 2 }),
        new("tp2+sp", 2, Plain with { TensorModelParallelSize = 2, SequenceParallel = true }),
        new("tp2+sp, overlapped", 2, Plain with { TensorModelParallelSize = 2, SequenceParallel = true, TpCommOverlap = true }),
        new("tp4+sp", 4, Plain with { TensorModelParallelSize = 4, SequenceParallel = true }),
        new("pp2", 2, Plain with { PipelineModelParallelSize = 2 }),
        new("pp4", 4, Plain with { PipelineModelParallelSize = 4 }),
        new("pp4 gpipe", 4, Plain with { PipelineModelParallelSize = 4, PipelineSchedule = "gpipe" }),
        new("pp2 x vp2", 2, Plain with { PipelineModelParallelSize = 2, VirtualPipelineModelParallelSize = 2 }),
        new("pp2 zero bubble", 2, Plain with { PipelineModelParallelSize = 2, PipelineSchedule = "zero_bubble" }),
        new("pp4 zero bubble", 4, Plain with { PipelineModelParallelSize = 4, PipelineSchedule = "zero_bubble" }),
        new("pp2, first stage 1 layer", 2, Plain with { PipelineModelParallelSize = 2, DecoderFirstPipelineNumLayers = 1 }),
        new("pp3, last stage 2 layers", 3, Plain with { PipelineModelParallelSize = 3, DecoderLastPipelineNumLayers = 2 }),
        new("cp2 ring", 2, Plain with { ContextParallelSize = 2 }),
        new("cp2 all-to-all", 2, Plain with { ContextParallelSize = 2, CpCommType = "a2a" }),
        new("cp4 ring", 4, Plain with { ContextParallelSize = 4 }),
        new("cp4 all-to-all", 4, Plain with { ContextParallelSize = 4, CpCommType = "a2a" }),
        new("cp2 x dp2, distributed optimizer", 4, Plain with { ContextParallelSize = 2, UseDistributedOptimizer = true }),
        new("tp2+sp x cp2", 4, Plain with { TensorModelParallelSize = 2, SequenceParallel = true, ContextParallelSize = 2 }),
        new("tp2 x cp2 all-to-all", 4, Plain with { TensorModelParallelSize = 2, ContextParallelSize = 2, CpCommType = "a2a" }),
        new("tp2+sp x pp2 x cp2", 8, Plain with { TensorModelParallelSize = 2, SequenceParallel = true, PipelineModelParallelSize = 2, ContextParallelSize = 2 }),
        new("cp2 ring, recompute", 2, Plain with
        {
            ContextParallelSize = 2, RecomputeGranularity = "selective", RecomputeModules = ["core_attn", "layernorm"], UseDistributedOptimizer = true,
        }),
        new("dp2", 2, Plain),
        new("dp4", 4, Plain),
        new("dp2, distributed optimizer", 2, Plain with { UseDistributedOptimizer = true }),
        new("dp4, distributed optimizer", 4, Plain with { UseDistributedOptimizer = true }),
        new("dp2, overlapped", 2, Overlapped with { OverlapParamGather = false, UseDistributedOptimizer = false }),
        new("dp2, distributed optimizer, overlapped", 2, Overlapped),
        new("dp4, distributed optimizer, overlapped", 4, Overlapped),
        new("tp2 x pp2 x dp2", 8, Plain with { TensorModelParallelSize = 2, PipelineModelParallelSize = 2 }),
        new("tp2+sp x pp2 x dp2, all overlapped", 8,
            Overlapped with { TensorModelParallelSize = 2, SequenceParallel = true, TpCommOverlap = true, PipelineModelParallelSize = 2 }),
        new("tp2 x pp2", 4, Plain with { TensorModelParallelSize = 2, PipelineModelParallelSize = 2 }),
        new("pp2 x dp2, distributed optimizer", 4, Plain with { PipelineModelParallelSize = 2, UseDistributedOptimizer = true }),
        new("pp2 x vp2 x dp2", 4, Plain with { PipelineModelParallelSize = 2, VirtualPipelineModelParallelSize = 2 }),
        new("tp2+sp x pp2 x dp2, distributed optimizer", 8,
            Plain with { TensorModelParallelSize = 2, SequenceParallel = true, PipelineModelParallelSize = 2, UseDistributedOptimizer = true }),
        new("tp2+sp x pp2, recompute", 4, Plain with
        {
            TensorModelParallelSize = 2, SequenceParallel = true, PipelineModelParallelSize = 2,
            RecomputeGranularity = "full", RecomputeMethod = "uniform", RecomputeNumLayers = 1,
        }),
        new("ep2", 2, Plain with { ExpertModelParallelSize = 2 }),
        new("ep4", 4, Plain with { ExpertModelParallelSize = 4 }),
        new("ep2 x dp4, distributed optimizer", 4, Plain with { ExpertModelParallelSize = 2, UseDistributedOptimizer = true }),
        new("tp2 x ep2 x dp2", 4, Plain with { TensorModelParallelSize = 2, ExpertModelParallelSize = 2 }),
        new("tp2+sp x ep2 x dp2, distributed optimizer", 4,
            Plain with { TensorModelParallelSize = 2, SequenceParallel = true, ExpertModelParallelSize = 2, UseDistributedOptimizer = true }),
        new("tp2+sp x etp1 x ep4", 4, Plain with { TensorModelParallelSize = 2, SequenceParallel = true, ExpertModelParallelSize = 4, ExpertTensorParallelSize = 1 }),
        new("tp2 x etp1 x ep2", 2, Plain with { TensorModelParallelSize = 2, ExpertModelParallelSize = 2, ExpertTensorParallelSize = 1 }),
        new("cp2 x ep2", 2, Plain with { ContextParallelSize = 2, ExpertModelParallelSize = 2 }),
        new("tp2+sp x cp2 x ep2", 4, Plain with { TensorModelParallelSize = 2, SequenceParallel = true, ContextParallelSize = 2, ExpertModelParallelSize = 2 }),
        new("ep2 x pp2 x dp2", 4, Plain with { ExpertModelParallelSize = 2, PipelineModelParallelSize = 2 }),
        new("ep2 x pp2 zero bubble x dp4, distributed optimizer", 8,
            Plain with { ExpertModelParallelSize = 2, PipelineModelParallelSize = 2, PipelineSchedule = "zero_bubble", UseDistributedOptimizer = true }),
        new("tp2+sp x ep2 x pp2 x dp2, recompute of experts", 8, Plain with
        {
            TensorModelParallelSize = 2, SequenceParallel = true, ExpertModelParallelSize = 2, PipelineModelParallelSize = 2, UseDistributedOptimizer = true,
            RecomputeGranularity = "selective", RecomputeModules = ["moe_act", "layernorm"],
        }),
        new("tp2+sp x ep2, recompute of whole expert layers", 4, Plain with
        {
            TensorModelParallelSize = 2, SequenceParallel = true, ExpertModelParallelSize = 2, RecomputeGranularity = "selective", RecomputeModules = ["moe"],
        }),
    ];

    /// <summary>The cells that are run on packed rows too: one of each kind, and all with context parallelism, which splits each sample.</summary>
    public static IReadOnlyList<ParityCell> AllPacked { get; } =
    [
        .. All.Where(cell => cell.Config.ContextParallelSize > 1
            || cell.Name is "tp2+sp" or "pp2" or "pp2 x vp2" or "dp2, distributed optimizer" or "dp4, distributed optimizer, overlapped" or "tp2+sp x pp2 x dp2, all overlapped" or "ep2" or "tp2+sp x pp2 x dp2, distributed optimizer").Select(cell => cell.Packed),
    ];

    /// <summary>The same layout on packed rows.</summary>
    public ParityCell Packed => new($"packed: {Name}", Ranks, Config with { Packing = true });

    /// <summary>Data-parallel replicas.</summary>
    public int Replicas => Ranks / (Config.TensorModelParallelSize * Config.PipelineModelParallelSize * Config.ContextParallelSize);

    /// <summary>Micro-batch size at which each replica accumulates so often; 0 when there is none.</summary>
    public int MicroBatchSizeFor(int accumulation) => GlobalBatchSize / (Replicas * accumulation);

    /// <summary>Why the cell does not apply, or null.</summary>
    public string? NotApplicable(string model, int accumulation)
    {
        if (MicroBatchSizeFor(accumulation) < 1) return "less than one sample in a micro-batch";
        if (Config.VirtualPipelineModelParallelSize > 1 && accumulation % Config.PipelineModelParallelSize != 0) return "interleaving takes micro-batches in groups of the stages";
        var isSparse = model.EndsWith("moe", StringComparison.Ordinal);
        if (Config.ExpertModelParallelSize > 1 && !isSparse) return "no experts";
        var groups = model is "qwen3-dense" or "qwen2-moe" ? 4 : 2;
        var splits = Config.TensorModelParallelSize * (Config.CpCommType == "a2a" ? Config.ContextParallelSize : 1);
        return splits > groups ? $"{groups} query groups" : null;
    }
}
