namespace Megatron.Compute.Optimizers;

/// <summary>Settings of the fp16 loss scale; names and defaults of Megatron-LM's options.</summary>
public sealed record LossScalerOptions
{
    /// <summary><c>--loss_scale</c>: a constant scale; null means dynamic.</summary>
    public double? LossScale { get; init; }

    /// <summary><c>--initial_loss_scale</c> of the dynamic scale.</summary>
    public double InitialLossScale { get; init; } = 4294967296.0; // 2^32

    /// <summary><c>--min_loss_scale</c> of the dynamic scale.</summary>
    public double MinLossScale { get; init; } = 1.0;

    /// <summary><c>--loss_scale_window</c>: finite steps in a row after which the scale doubles.</summary>
    public int LossScaleWindow { get; init; } = 1000;

    /// <summary><c>--hysteresis</c>: non-finite steps that are let pass before the scale is halved.</summary>
    public int Hysteresis { get; init; } = 2;
}

/// <summary>What a checkpoint keeps of a <see cref="LossScaler"/>.</summary>
/// <param name="Scale">Factor of the next step.</param>
/// <param name="NumFiniteSteps">Finite steps since the last change or non-finite step.</param>
/// <param name="HysteresisLeft">Non-finite steps left before the scale is halved.</param>
public sealed record LossScalerState(double Scale, int NumFiniteSteps, int HysteresisLeft);

/// <summary>
/// The factor that keeps fp16 gradients inside fp16's range (arXiv 1710.03740, section 3.2): constant, or dynamic with doubling,
/// halving and hysteresis. Not needed for bf16 and fp32. Only bookkeeping; the trainer multiplies the loss, the optimizer divides.
/// </summary>
public sealed class LossScaler
{
    private const double Growth = 2.0;
    private const double Backoff = 0.5;
    private readonly LossScalerOptions options;

    /// <summary>Scale and counters; set when a checkpoint is loaded.</summary>
    public LossScalerState State { get; set; }

    /// <summary>Factor of the next step's loss.</summary>
    public double Scale => State.Scale;

    public LossScaler(LossScalerOptions options)
    {
        this.options = options;
        State = new LossScalerState(options.LossScale ?? options.InitialLossScale, 0, options.Hysteresis);
    }

    /// <summary>Called once per step by the optimizer, on every rank with the same answer.</summary>
    /// <param name="isFinite">All gradients of the step were finite.</param>
    public void Update(bool isFinite)
    {
        if (options.LossScale is not null) return;
        State = isFinite ? AfterFinite(State) : AfterOverflow(State);
    }

    private LossScalerState AfterFinite(LossScalerState state) => state.NumFiniteSteps + 1 >= options.LossScaleWindow
        ? new LossScalerState(state.Scale * Growth, 0, options.Hysteresis)
        : state with { NumFiniteSteps = state.NumFiniteSteps + 1 };

    private LossScalerState AfterOverflow(LossScalerState state)
    {
        var left = state.HysteresisLeft - 1;
        var scale = left <= 0 ? Math.Max(state.Scale * Backoff, options.MinLossScale) : state.Scale;
        return new LossScalerState(scale, 0, left);
    }
}
