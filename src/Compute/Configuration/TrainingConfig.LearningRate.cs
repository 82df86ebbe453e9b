namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: learning rate (reference 1.2).
public sealed partial record TrainingConfig
{
    [Option("lr", "Peak learning rate.", LearningRate, Aliases = "learning_rate")]
    public double Lr { get; init; } = 1e-5;

    [Option("lr_decay_style", "Shape of the decay from lr to min_lr.", LearningRate, Choices = "cosine|linear|constant")]
    public string LrDecayStyle { get; init; } = "cosine";

    [Option("lr_decay_iters", "Length of the schedule in iterations, warm-up included.", LearningRate, DefaultFrom = "train_iters")]
    public int? LrDecayIters { get; init; }

    [Option("lr_warmup_iters", "Iterations of linear warm-up from 0; with it, the first step runs at learning rate 0.", LearningRate)]
    public int LrWarmupIters { get; init; }

    [Option("lr_warmup_fraction", "Warm-up as a share of lr_decay_iters, 0 to 1; instead of lr_warmup_iters.",
        LearningRate, Aliases = "warmup_ratio")]
    public double? LrWarmupFraction { get; init; }

    [Option("min_lr", "Learning rate at the end of the decay and after it.", LearningRate)]
    public double MinLr { get; init; }
}
