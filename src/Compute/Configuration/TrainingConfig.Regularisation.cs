namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: regularisation and optimizer (reference 1.3).
public sealed partial record TrainingConfig
{
    [Option("weight_decay", "Decoupled decay of tensors of two or more dimensions; biases and norms have none.", Regularisation)]
    public double WeightDecay { get; init; } = 0.1;

    [Option("clip_grad", "Largest global L2 norm of the gradient; 0 = no clipping.", Regularisation, Aliases = "max_grad_norm")]
    public double ClipGrad { get; init; } = 1.0;

    [Option("adam_beta1", "Decay of the first moment.", Regularisation)]
    public double AdamBeta1 { get; init; } = 0.9;

    [Option("adam_beta2", "Decay of the second moment.", Regularisation)]
    public double AdamBeta2 { get; init; } = 0.95;

    [Option("adam_eps", "Added to the root of the second moment.", Regularisation, Aliases = "adam_epsilon")]
    public double AdamEps { get; init; } = 1e-8;

    [Option("sgd_momentum", "Momentum of sgd.", Regularisation)]
    public double SgdMomentum { get; init; } = 0.9;
}
