using Megatron.Compute.Configuration;
using Megatron.Compute.Optimizers;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// The settings of each part of a run, read off the configuration. Pure; the only place that knows which option feeds which part. The
/// configuration has been resolved and validated before (<see cref="RunPreparation"/>).
/// </summary>
public static class RunSettings
{
    /// <summary>Model dtype of the run: fp32, bf16 or fp16.</summary>
    public static ScalarType ModelDType(TrainingConfig config) => config.TorchDtype switch
    {
        "bfloat16" => bfloat16,
        "float16" => float16,
        "float32" => float32,
        _ => throw new InvalidOperationException($"torch_dtype = {config.TorchDtype} was not resolved."),
    };

    /// <summary>The learning-rate schedule over <paramref name="trainIters"/> steps.</summary>
    public static LearningRateSchedule LearningRate(TrainingConfig config, long trainIters) => new(new LearningRateOptions
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
    });

    /// <summary>What the trainer's step needs.</summary>
    public static TrainerOptions Trainer(TrainingConfig config) => new()
    {
        PerTokenLoss = config.CalculatePerTokenLoss,
        NumLogicalShards = config.LogicalDataShards ?? 1,
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
        },
        LossScaler = ModelDType(config) != float16 ? null : new LossScalerOptions
        {
            InitialLossScale = config.InitialLossScale,
            MinLossScale = config.MinLossScale,
            LossScaleWindow = config.LossScaleWindow,
            Hysteresis = config.Hysteresis,
        },
    };
}
