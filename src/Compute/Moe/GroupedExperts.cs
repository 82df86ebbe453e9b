using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>
/// The routed experts of a layer, each a gated MLP: row r of expert e gives w_r · down_e(silu(gate_e(x_r)) · up_e(x_r)). The weight enters
/// before the down projection, which is linear, so the experts' outputs need not be kept for the router's gradient. All experts are two stacked
/// parameters; the products run one expert at a time on contiguous rows. Where an expert's features are split over ranks, outputs and gradients of
/// rows and weights are this rank's terms of sums.
/// </summary>
/// <remarks>Shape letters: R rows, H hidden, F features of an expert on this rank, E experts of this rank.</remarks>
public sealed class GroupedExperts
{
    private const int Input = 0, Weights = 1, Ends = 2, GateUp = 3, Activation = 4, GradGateUp = 5, GradOutput = 6; // slots

    private readonly Parameter gateUp_E2FH;
    private readonly Parameter down_EHF;
    private readonly bool recomputeActivation;
    private readonly int ffnHiddenSize;

    /// <summary>The two stacked weights.</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="weights">Makes the parameters.</param>
    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0.mlp.experts</c>.</param>
    /// <param name="slice">This rank's part of the layer's experts.</param>
    /// <param name="hiddenSize">H.</param>
    /// <param name="recomputeActivation">Keep the projections only and compute the activation again in the backward ("moe_act").</param>
    public GroupedExperts(ParameterFactory weights, string prefix, ExpertSlice slice, int hiddenSize, bool recomputeActivation)
    {
        (ffnHiddenSize, this.recomputeActivation) = (slice.NumFeatures, recomputeActivation);
        var (numExperts, whole, size) = (slice.NumExperts, slice.FfnHiddenSize, (long)ffnHiddenSize * hiddenSize);
        var (gateUp, down) = (new List<TensorBlock>(), new List<TensorBlock>());
        for (var i = 0; i < numExperts; i++)
        {
            var name = $"{prefix}.{slice.FirstExpert + i}";
            foreach (var (part, place) in (ReadOnlySpan<(string, long)>)[("gate_proj", 2 * i), ("up_proj", 2 * i + 1)])
                gateUp.Add(new($"{name}.{part}.weight", [whole, hiddenSize], [slice.FirstFeature, 0], [ffnHiddenSize, hiddenSize], place * size));
            down.Add(new($"{name}.down_proj.weight", [hiddenSize, whole], [0, slice.FirstFeature], [hiddenSize, ffnHiddenSize], i * size));
        }
        var traits = new ParameterTraits { Decays = true, IsExpert = true, IsTensorSharded = true };
        gateUp_E2FH = weights.Create($"{prefix}.gate_up_proj.weight", [numExperts, 2 * ffnHiddenSize, hiddenSize], gateUp, traits);
        down_EHF = weights.Create($"{prefix}.down_proj.weight", [numExperts, hiddenSize, ffnHiddenSize], down, traits);
        Parameters = [gateUp_E2FH, down_EHF];
    }

    /// <summary>Runs the experts.</summary>
    /// <param name="tokens">Rows sorted by expert; kept.</param>
    /// <returns>[R, H], weighted.</returns>
    public Tensor Forward(DispatchedTokens tokens, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (rows_RH, weights_R, ends_E) = tokens;
        var gateUp_R2F = GroupedProduct.Rows(rows_RH, gateUp_E2FH.Data.transpose(1, 2), ends_E);
        var weighted_RF = WeightedSwiGlu.Forward(gateUp_R2F, weights_R);
        var output_RH = GroupedProduct.Rows(weighted_RF, down_EHF.Data.transpose(1, 2), ends_E);

        saved.Keep(Input, rows_RH);
        saved.Keep(Weights, weights_R);
        saved.Keep(Ends, ends_E);
        saved.Keep(GateUp, gateUp_R2F);
        if (!recomputeActivation && !WeightedSwiGlu.GivesOutputAgain(gateUp_R2F, weights_R)) saved.Keep(Activation, weighted_RF);
        return output_RH.MoveToOuterDisposeScope();
    }

    /// <summary>Gradients with respect to rows and weights.</summary>
    /// <returns>[R, H] in the model dtype, and [R] in the dtype of the weights.</returns>
    public (Tensor GradRows_RH, Tensor GradWeights_R) BackwardInput(Tensor gradOutput_RH, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (gateUp_R2F, weights_R, ends_E) = (saved.Take(GateUp), saved.Take(Weights), saved.Peek(Ends));
        var gradWeighted_RF = GroupedProduct.Rows(gradOutput_RH, down_EHF.Data, ends_E);
        var (gradGateUp_R2F, gradWeights_R, weighted_RF) = WeightedSwiGlu.Backward(gradWeighted_RF, gateUp_R2F, weights_R, wantsOutput: !saved.Has(Activation));
        var gradRows_RH = GroupedProduct.Rows(gradGateUp_R2F, gateUp_E2FH.Data, ends_E);
        saved.Keep(GradGateUp, gradGateUp_R2F);
        saved.Keep(GradOutput, gradOutput_RH);
        if (weighted_RF is not null) saved.Keep(Activation, weighted_RF);
        return (gradRows_RH.MoveToOuterDisposeScope(), gradWeights_R.MoveToOuterDisposeScope());
    }

    /// <summary>Adds the gradients of all experts that got rows.</summary>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        var ends_E = saved.Take(Ends);
        var (input_RH, gradGateUp_R2F) = (saved.Take(Input), saved.Take(GradGateUp));
        var (weighted_RF, gradOutput_RH) = (saved.Take(Activation), saved.Take(GradOutput));
        GroupedProduct.AccumulateWeights(gateUp_E2FH, gradGateUp_R2F, input_RH, ends_E);
        GroupedProduct.AccumulateWeights(down_EHF, gradOutput_RH, weighted_RF, ends_E);
    }
}

/// <summary>The part of a layer's experts that a rank holds: some experts, and of each some features.</summary>
/// <param name="FirstExpert">Global number of the first expert.</param>
/// <param name="NumExperts">How many follow one another.</param>
/// <param name="FirstFeature">First feature of each.</param>
/// <param name="NumFeatures">How many follow one another.</param>
/// <param name="FfnHiddenSize">Features of a whole expert.</param>
public readonly record struct ExpertSlice(int FirstExpert, int NumExperts, int FirstFeature, int NumFeatures, int FfnHiddenSize);
