namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: evaluation (reference 1.7).
public sealed partial record TrainingConfig
{
    [Option("eval_iters", "Global batches per evaluation; 0 = no evaluation, -1 = the validation set once.", Evaluation)]
    public int EvalIters { get; init; } = 100;

    [Option("eval_interval", "Iterations between two evaluations.", Evaluation, DefaultFrom = "save_interval", Aliases = "eval_steps")]
    public int? EvalInterval { get; init; }
}
