namespace Megatron.Compute.Ops;

/// <summary>How the products of linear layers are formed: settings of the run.</summary>
public sealed record ProductOptions
{
    /// <summary>16-bit or wider, by the fastest algorithm.</summary>
    public static ProductOptions Default { get; } = new();

    /// <summary>For small products and those whose shape changes from step to step.</summary>
    public static ProductOptions Unmeasured { get; } = new() { IsDeterministic = true };

    /// <summary>No algorithm is chosen by measuring (<c>--deterministic_mode</c>): another run could measure otherwise, and its sums have another order.</summary>
    public bool IsDeterministic { get; init; }

    /// <summary>Rounds the factors to float8 (<c>--fp8_format</c>); null keeps the model's dtype.</summary>
    public Float8Format? Float8 { get; init; }
}
