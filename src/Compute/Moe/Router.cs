using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>Where tokens go.</summary>
/// <param name="Weights_Tk">[T, k] weight of each chosen expert, fp32 or fp64.</param>
/// <param name="Experts_Tk">[T, k] int64 chosen experts.</param>
public readonly record struct Routing(Tensor Weights_Tk, Tensor Experts_Tk);

/// <summary>
/// Top-k router: logits = x Wᵀ in the router's dtype, everything after them in fp32 (fp64 for an fp64 router). Post-softmax: the k largest logits, then softmax over them. Pre-softmax: softmax over all
/// experts, then its k largest, not renormalised. The gradients of the balance loss and the z-loss are added to those of the weights.
/// </summary>
/// <remarks>
/// Balance loss (arXiv 2101.03961, equation 4, with k experts a token): E / (k·S²) · Σ_e n_e · Σ_t P[t, e] over the S tokens of a group, mean over
/// the groups; P is the softmax over all experts, n_e counts assignments. One group is the micro-batch (aux_loss) or a sequence
/// (seq_aux_loss). z-loss (arXiv 2202.08906, equation 5): mean over tokens of logsumexp². Sees real tokens only, and of a row that several ranks
/// share out this rank's tokens: n_e is summed over those ranks (two all-reduces of 8·G·E bytes, exact), P stays here, and the ranks'
/// shares of a loss add up to it. Shape letters: T real tokens of this rank, H hidden, E experts, k experts of a token, G groups.
/// </remarks>
public sealed class Router
{
    private const int Input = 0, Logits = 1, Experts = 2, Weights = 3, GradLogits = 4; // slots

    private readonly Parameter weight_EH;
    private readonly MoeConfig config;
    private readonly MoeOptions options;
    private readonly RoutingStatistics statistics;
    private readonly int layerIndex;
    private readonly IReadOnlyList<ProcessGroup> rowGroups;

    /// <summary>The gate.</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="weight_EH">The gate's weight, on every rank whole.</param>
    /// <param name="layerIndex">0-based global layer: its row in <paramref name="statistics"/>.</param>
    /// <param name="rowGroups">The groups over whose ranks the tokens of a micro-batch are shared out: tensor and context parallel.</param>
    public Router(
        Parameter weight_EH, MoeConfig config, MoeOptions options, RoutingStatistics statistics, int layerIndex, IReadOnlyList<ProcessGroup> rowGroups)
    {
        (this.weight_EH, this.config, this.options, this.statistics, this.layerIndex) = (weight_EH, config, options, statistics, layerIndex);
        this.rowGroups = rowGroups;
        Parameters = [weight_EH];
    }

    /// <summary>Chooses the experts of each token.</summary>
    /// <param name="x_TH">Real tokens; kept.</param>
    public Routing Forward(Tensor x_TH, Saved saved)
    {
        using var scope = NewDisposeScope();
        saved.Keep(Input, x_TH);
        var logits_TE = ComputeLogits(x_TH);
        var (values_Tk, experts_Tk) = (config.PreSoftmax ? logits_TE.softmax(-1) : logits_TE).topk(config.TopK, dim: -1);
        var weights_Tk = config.PreSoftmax ? values_Tk : values_Tk.softmax(-1);
        saved.Keep(Logits, logits_TE);
        saved.Keep(Experts, experts_Tk);
        saved.Keep(Weights, weights_Tk);
        return new Routing(weights_Tk.MoveToOuterDisposeScope(), experts_Tk.MoveToOuterDisposeScope());
    }

    /// <summary>
    /// Gradient with respect to the tokens, of the weights and of the auxiliary losses times <see cref="ForwardContext.AuxiliaryLossFactor"/>.
    /// Adds this micro-batch to the statistics.
    /// </summary>
    /// <param name="gradWeights_Tk">[T, k], dtype of the weights.</param>
    /// <param name="tokens">The tokens that Forward saw.</param>
    /// <returns>[T, H] in the model dtype.</returns>
    public Tensor BackwardInput(Tensor gradWeights_Tk, RealTokens tokens, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (logits_TE, experts_Tk, weights_Tk) = (saved.Take(Logits), saved.Take(Experts), saved.Take(Weights));
        var counts_GE = CountAssignments(experts_Tk, tokens);
        Record(statistics.TokensPerExpert, counts_GE.sum(dim: 0));
        if (options.HasBalanceLoss || options.ZLossCoeff > 0)
            foreach (var group in rowGroups) group.AllReduce(counts_GE, ReduceOp.Sum).Wait();

        var gradLogits_TE = zeros_like(logits_TE);
        if (logits_TE.shape[0] > 0) AddThroughSoftmax(gradLogits_TE, logits_TE, new Routing(weights_Tk, experts_Tk), gradWeights_Tk, new Load(counts_GE, tokens), saved.Context);
        if (UsesWideProduct(saved.Peek(Input)))
        {
            var split_T2E = WideProduct.Split(gradLogits_TE);
            saved.Keep(GradLogits, split_T2E);
            return WideProduct.BackwardInput(split_T2E, weight_EH.Data).MoveToOuterDisposeScope();
        }
        saved.Keep(GradLogits, gradLogits_TE);
        var gradInput_TH = gradLogits_TE.mm(weight_EH.Data.to_type(gradLogits_TE.dtype));
        return gradInput_TH.to_type(weight_EH.Data.dtype).MoveToOuterDisposeScope();
    }

    /// <summary>Adds the gate's gradient.</summary>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        var (gradLogits_TE, x_TH) = (saved.Take(GradLogits), saved.Take(Input));
        if (UsesWideProduct(x_TH)) WideProduct.BackwardWeight(weight_EH, gradLogits_TE, x_TH);
        else WeightGradient.Accumulate(weight_EH, gradLogits_TE, x_TH.to_type(gradLogits_TE.dtype), ProductOptions.Unmeasured);
    }

    /// <summary>Frees the kept tokens after Forward.</summary>
    public void DiscardInput(Saved saved) => saved.Release(Input);

    /// <summary>Puts the same tokens back before BackwardInput.</summary>
    public void RestoreInput(Tensor x_TH, Saved saved) => saved.Keep(Input, x_TH);

    /// <summary>Everything that reaches the logits: the weights' gradient and the auxiliary losses'.</summary>
    private void AddThroughSoftmax(Tensor gradLogits_TE, Tensor logits_TE, Routing routing, Tensor gradWeights_Tk, Load load, ForwardContext context)
    {
        if (!config.PreSoftmax) gradLogits_TE.scatter_(1, routing.Experts_Tk, SoftmaxBackward(routing.Weights_Tk, gradWeights_Tk));
        if (!config.PreSoftmax && !options.HasBalanceLoss && options.ZLossCoeff == 0) return;

        var probabilities_TE = logits_TE.softmax(-1);
        if (config.PreSoftmax || options.HasBalanceLoss)
        {
            var gradProbabilities_TE = zeros_like(logits_TE);
            if (config.PreSoftmax) gradProbabilities_TE.scatter_(1, routing.Experts_Tk, gradWeights_Tk);
            if (options.HasBalanceLoss) AddBalanceLoss(gradProbabilities_TE, probabilities_TE, load, context);
            gradLogits_TE.add_(SoftmaxBackward(probabilities_TE, gradProbabilities_TE));
        }
        if (options.ZLossCoeff > 0) AddZLoss(gradLogits_TE, logits_TE, probabilities_TE, load, context);
    }

    /// <summary>The loss is linear in P for given counts: its slope is one row for each group.</summary>
    private void AddBalanceLoss(Tensor gradProbabilities_TE, Tensor probabilities_TE, Load load, ForwardContext context)
    {
        var lengths_G1 = LengthsOf(load.Counts_GE).unsqueeze(1);
        var numGroups = lengths_G1.gt(0).sum().to_type(float64);
        // A group without tokens has counts of 0, so any divisor will do for it.
        var slope_GE = load.Counts_GE.to_type(float64) / (lengths_G1 * lengths_G1).clamp_min_(1) * ((double)config.NumExperts / config.TopK) / numGroups;
        var slope_TE = slope_GE.to_type(probabilities_TE.dtype);
        slope_TE = IsPerSequence ? slope_TE.index_select(0, load.Tokens.Sequence) : slope_TE.expand_as(probabilities_TE);
        Record(statistics.BalanceLoss, (probabilities_TE * slope_TE).sum(float64));
        gradProbabilities_TE.add_(slope_TE, alpha: options.AuxLossCoeff * context.AuxiliaryLossFactor);
    }

    private void AddZLoss(Tensor gradLogits_TE, Tensor logits_TE, Tensor probabilities_TE, Load load, ForwardContext context)
    {
        var numTokens = LengthsOf(load.Counts_GE).sum();
        var logSumExp_T1 = logits_TE.logsumexp(-1, keepdim: true);
        Record(statistics.ZLoss, logSumExp_T1.to_type(float64).square().sum() / numTokens);
        var slope_T1 = logSumExp_T1 * (2 * options.ZLossCoeff * context.AuxiliaryLossFactor / numTokens).to_type(logits_TE.dtype);
        gradLogits_TE.addcmul_(probabilities_TE, slope_T1, value: 1);
    }

    /// <summary>[G] fp64 tokens of each group, those of other ranks too: each was counted k times.</summary>
    private Tensor LengthsOf(Tensor counts_GE) => counts_GE.sum(dim: 1).to_type(float64) / config.TopK;

    private bool IsPerSequence => options.LoadBalancing == LoadBalancing.SequenceAuxiliaryLoss;

    /// <summary>[G, E] int64 assignments: integers, so that the order of adding does not matter.</summary>
    private Tensor CountAssignments(Tensor experts_Tk, RealTokens tokens)
    {
        var numGroups = IsPerSequence ? tokens.NumSequences : 1;
        var cell_Tk = IsPerSequence ? experts_Tk + tokens.Sequence.unsqueeze(1) * config.NumExperts : experts_Tk;
        var flat = cell_Tk.reshape(-1);
        return zeros([numGroups * config.NumExperts], int64, flat.device).scatter_add_(0, flat, ones_like(flat)).view(numGroups, config.NumExperts);
    }

    private void Record(Tensor rows, Tensor value) => RoutingStatistics.Add(rows, layerIndex, value);

    /// <summary>[T, E], fp32 or fp64.</summary>
    private Tensor ComputeLogits(Tensor x_TH)
    {
        if (UsesWideProduct(x_TH)) return WideProduct.Forward(x_TH, weight_EH.Data);
        var dtype = ProductDtype(x_TH);
        var logits_TE = nn.functional.linear(x_TH.to_type(dtype), weight_EH.Data.to_type(dtype));
        return dtype == float64 ? logits_TE : logits_TE.to_type(float32);
    }

    private bool UsesWideProduct(Tensor x_TH) => ProductDtype(x_TH) == float32 && WideProduct.Supports(x_TH, weight_EH.Data);

    /// <summary>Double-precision models (tests) are not rounded on the way.</summary>
    private ScalarType ProductDtype(Tensor x) => x.dtype == float64 ? float64 : options.RouterDtype ?? x.dtype;

    private static Tensor SoftmaxBackward(Tensor probabilities, Tensor grad) =>
        probabilities * (grad - (probabilities * grad).sum(-1, keepdim: true));

    /// <summary>Assignments of the micro-batch in each group, and this rank's tokens.</summary>
    private readonly record struct Load(Tensor Counts_GE, RealTokens Tokens);
}
