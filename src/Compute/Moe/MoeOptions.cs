using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>How the load of the experts is evened out.</summary>
public enum LoadBalancing
{
    /// <summary>Not at all.</summary>
    None,

    /// <summary>A loss over the tokens of the micro-batch (arXiv 2101.03961, section 2.2).</summary>
    AuxiliaryLoss,

    /// <summary>The same loss for each sequence on its own, averaged over the sequences (arXiv 2405.04434, section 2.1.2).</summary>
    SequenceAuxiliaryLoss,
}

/// <summary>Settings of mixture-of-experts layers that belong to the run, not to the architecture.</summary>
public sealed record MoeOptions
{
    public required LoadBalancing LoadBalancing { get; init; }

    /// <summary>Weight of the balance loss; 0 leaves it out.</summary>
    public required double AuxLossCoeff { get; init; }

    /// <summary>Weight of the z-loss (arXiv 2202.08906, equation 5); 0 leaves it out.</summary>
    public required double ZLossCoeff { get; init; }

    /// <summary>Number format of the product that gives the logits; null for that of the model.</summary>
    public required ScalarType? RouterDtype { get; init; }

    /// <summary>The shared expert runs while tokens travel to the routed ones.</summary>
    public bool OverlapSharedExpert { get; init; }

    /// <summary>fp32 router, no auxiliary loss.</summary>
    public static MoeOptions Plain { get; } = new() { LoadBalancing = LoadBalancing.None, AuxLossCoeff = 0, ZLossCoeff = 0, RouterDtype = ScalarType.Float32 };

    /// <summary>True when there is a balance loss.</summary>
    public bool HasBalanceLoss => LoadBalancing != LoadBalancing.None && AuxLossCoeff > 0;
}
