using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Native;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Tokenization;
using Megatron.Compute.Transformer;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// The settings of each part of a run, read off the configuration. Pure; the only place that knows which option feeds which part. The
/// configuration has been resolved and validated before (<see cref="RunPreparation"/>).
/// </summary>
public static class RunSettings
{
    /// <summary>Two would leave half of each collective uncovered, many make products small.</summary>
    private const int TensorOverlapChunks = 4;

    /// <summary>Each chunk reads and writes the whole fp32 gradient of the head once; a GPU has the memory for longer ones.</summary>
    private const int HeadChunkTokensCpu = 2048, HeadChunkTokensGpu = 4096;

    /// <summary>Model dtype of the run: fp32, bf16 or fp16.</summary>
    public static ScalarType ModelDType(TrainingConfig config) => config.TorchDtype switch
    {
        "bfloat16" => bfloat16,
        "float16" => float16,
        "float32" => float32,
        _ => throw new InvalidOperationException($"torch_dtype = {config.TorchDtype} was not resolved."),
    };

    /// <summary>The learning-rate schedule over <paramref name="trainIters"/> steps.</summary>
    public static LearningRateSchedule LearningRate(TrainingConfig config, long trainIters) => new(LearningRateOptions(config, trainIters));

    /// <summary>The settings of <see cref="LearningRate"/>.</summary>
    public static LearningRateOptions LearningRateOptions(TrainingConfig config, long trainIters) => new()
    {
        Lr = config.Lr,
        MinLr = config.MinLr,
        DecayStyle = config.LrDecayStyle switch
        {
            "constant" => LearningRateDecay.Constant,
            "linear" => LearningRateDecay.Linear,
            _ => LearningRateDecay.Cosine,
        },
        DecayIters = config.LrDecayIters ?? trainIters,
        WarmupIters = config.LrWarmupIters,
        WarmupFraction = config.LrWarmupFraction,
        GlobalBatchSize = config.GlobalBatchSize,
    };

    /// <summary>What the trainer's step needs.</summary>
    public static TrainerOptions Trainer(TrainingConfig config) => new()
    {
        PerTokenLoss = config.CalculatePerTokenLoss,
        NumLogicalShards = config.LogicalDataShards ?? 1,
        BucketElements = config.DdpBucketSize,
        CudaGraph = config.CudaGraph,
        Schedule = Schedule(config),
        Optimizer = new OptimizerOptions
        {
            Kind = config.Optimizer == "sgd" ? OptimizerKind.Sgd : OptimizerKind.Adam,
            WeightDecay = config.WeightDecay,
            ClipGrad = config.ClipGrad,
            AdamBeta1 = config.AdamBeta1,
            AdamBeta2 = config.AdamBeta2,
            AdamEps = config.AdamEps,
            SgdMomentum = config.SgdMomentum,
            UseDistributedOptimizer = config.UseDistributedOptimizer,
            OffloadFraction = config.OptimizerCpuOffload ? config.OptimizerOffloadFraction : 0,
            OrderedReduction = config.LogicalDataShards is not null,
            OverlapGradReduce = config.OverlapGradReduce,
            OverlapParamGather = config.OverlapParamGather,
            ReduceIn16Bits = config.GradReduceInBf16 ? bfloat16 : null,
        },
        LossScaler = ModelDType(config) != float16 ? null : new LossScalerOptions
        {
            InitialLossScale = config.InitialLossScale,
            MinLossScale = config.MinLossScale,
            LossScaleWindow = config.LossScaleWindow,
            Hysteresis = config.Hysteresis,
        },
    };

    /// <summary>Order of the work in the pipeline.</summary>
    public static PipelineScheduleKind Schedule(TrainingConfig config) => config.PipelineSchedule switch
    {
        "gpipe" => PipelineScheduleKind.GPipe,
        "1f1b" => PipelineScheduleKind.OneForwardOneBackward,
        "interleaved" => PipelineScheduleKind.Interleaved,
        "zero_bubble" => PipelineScheduleKind.ZeroBubble,
        _ => PipelineScheduleKind.Auto,
    };

    /// <summary>Which layers each pipeline stage and chunk owns.</summary>
    public static PipelinePartition Partition(TrainingConfig config, ModelConfig model)
    {
        var numStages = config.PipelineModelParallelSize;
        var numChunks = config.VirtualPipelineModelParallelSize
            ?? (config.NumLayersPerVirtualPipelineStage is { } layers ? PipelinePartition.NumChunks(model.NumLayers, numStages, layers) : 1);
        return new PipelinePartition(
            model.NumLayers, new PipelineShape(numStages, numChunks), config.DecoderFirstPipelineNumLayers, config.DecoderLastPipelineNumLayers);
    }

    /// <summary>The process grid.</summary>
    public static ParallelDims Dims(TrainingConfig config, int worldSize) => new(
        worldSize, config.TensorModelParallelSize, config.PipelineModelParallelSize, config.ContextParallelSize, config.ExpertModelParallelSize,
        config.ExpertTensorParallelSize);

    /// <summary>How this rank's micro-batches are laid out: rows padded to a multiple of <c>row_padding_multiple</c>, samples to 2·cp.</summary>
    public static BatchLayout BatchLayout(TrainingConfig config, ParallelState parallel, ITokenizer tokenizer) => new()
    {
        DataParallelRank = parallel.DataParallel.Rank,
        DataParallelSize = parallel.DataParallel.Size,
        MicroBatchSize = config.MicroBatchSize,
        PadRowToMultiple = RowLayout.RowMultiple(config.RowPaddingMultiple, config.ContextParallelSize, config.SequenceParallel ? config.TensorModelParallelSize : 1),
        PadSampleToMultiple = RowLayout.SampleMultiple(config.ContextParallelSize),
        PadTokenId = tokenizer.PadId ?? 0,
    };

    /// <summary>How the model is built on a rank.</summary>
    public static ModelOptions Model(TrainingConfig config, Device device) => new()
    {
        Dtype = ModelDType(config),
        Device = device,
        Seed = config.Seed,
        Recompute = Recompute(config),
        Products = Products(config, device),
        HeadChunkTokens = device.type == DeviceType.CUDA ? HeadChunkTokensGpu : HeadChunkTokensCpu,
        TensorOverlapChunks = config.TpCommOverlap ? TensorOverlapChunks : 1,
        Attention = new AttentionOptions
        {
            Backend = config.AttentionBackend switch
            {
                // The fused backward kernels of a GPU add with atomics.
                "auto" when config.DeterministicMode && device.type == DeviceType.CUDA => AttentionBackend.Unfused,
                "flash" => AttentionBackend.Flash,
                "fused" => AttentionBackend.Fused,
                "unfused" => AttentionBackend.Unfused,
                _ => AttentionBackend.Auto,
            },
            SoftmaxInFp32 = config.AttentionSoftmaxInFp32,
            QueryKeyLayerScaling = config.ApplyQueryKeyLayerScaling ?? config.TorchDtype == "float16",
            ContextExchange = config.CpCommType == "a2a" ? ContextExchange.AllToAll : ContextExchange.Ring,
        },
        Moe = Experts(config),
    };

    /// <exception cref="ConfigException">GPU005: the GPU has no float8.</exception>
    private static ProductOptions Products(TrainingConfig config, Device device)
    {
        if (config.Fp8Format is not null) CudaDevices.RequireFloat8(device);
        return new ProductOptions
        {
            IsDeterministic = config.DeterministicMode,
            Float8 = config.Fp8Format switch
            {
                "e4m3" => Float8Format.E4M3,
                "hybrid" => Float8Format.Hybrid,
                _ => null,
            },
        };
    }

    private static MoeOptions Experts(TrainingConfig config) => new()
    {
        LoadBalancing = config.MoeRouterLoadBalancingType switch
        {
            "aux_loss" => LoadBalancing.AuxiliaryLoss,
            "seq_aux_loss" => LoadBalancing.SequenceAuxiliaryLoss,
            _ => LoadBalancing.None,
        },
        AuxLossCoeff = config.MoeAuxLossCoeff ?? 0,
        ZLossCoeff = config.MoeZLossCoeff ?? 0,
        OverlapSharedExpert = config.MoeSharedExpertOverlap,
        RouterDtype = config.MoeRouterDtype switch
        {
            "fp32" => float32,
            "fp64" => float64,
            _ => null,
        },
    };

    private static RecomputeOptions Recompute(TrainingConfig config)
    {
        var options = NamedRecompute(config);
        return config.MoeLayerRecompute && options.Granularity != RecomputeGranularity.Full
            ? options with { Granularity = RecomputeGranularity.Selective, Modules = options.Modules | RecomputeModules.Moe }
            : options;
    }

    private static RecomputeOptions NamedRecompute(TrainingConfig config) => config.RecomputeGranularity switch
    {
        "full" => new RecomputeOptions
        {
            Granularity = RecomputeGranularity.Full,
            Method = config.RecomputeMethod == "block" ? RecomputeMethod.Block : RecomputeMethod.Uniform,
            NumLayers = config.RecomputeNumLayers ?? 1,
        },
        "selective" => new RecomputeOptions { Granularity = RecomputeGranularity.Selective, Modules = Modules(config.RecomputeModules) },
        _ => RecomputeOptions.Off,
    };

    private static RecomputeModules Modules(IReadOnlyList<string> names)
    {
        var modules = RecomputeModules.None;
        foreach (var name in names)
            modules |= name switch
            {
                "core_attn" => RecomputeModules.CoreAttention,
                "mlp" => RecomputeModules.Mlp,
                "layernorm" => RecomputeModules.LayerNorm,
                "moe" => RecomputeModules.Moe,
                "moe_act" => RecomputeModules.MoeActivation,
                _ => throw new InvalidOperationException($"recompute module {name} passed validation without being known."),
            };
        return modules;
    }
}
