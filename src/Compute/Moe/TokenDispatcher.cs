using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>Tokens as their experts get them.</summary>
/// <param name="Rows_RH">[R, H] one row for each assignment, sorted by expert.</param>
/// <param name="Weights_R">[R] router weight of each row.</param>
/// <param name="RowsPerExpert">Rows of each expert of this rank; sums to R.</param>
public readonly record struct DispatchedTokens(Tensor Rows_RH, Tensor Weights_R, long[] RowsPerExpert);

/// <summary>
/// Brings tokens to their experts and the results back: sort by expert, run, sum by token. All experts are on this rank; with expert
/// parallelism rows and weights cross to the experts' ranks at the end of <see cref="Dispatch"/> and return at the start of
/// <see cref="Combine"/>.
/// </summary>
/// <remarks>Shape letters: T tokens, k experts of a token, R = T·k rows, H hidden. The experts multiply by the weights, so the way back is a plain sum.</remarks>
public sealed class TokenDispatcher(int numExperts)
{
    private const int PlaceOfRow = 0, RowOfPlace = 1; // slots

    /// <summary>Sorts the tokens by expert.</summary>
    public DispatchedTokens Dispatch(Tensor x_TH, Routing routing, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (placeOfRow_R, rowOfPlace_Tk, rowsPerExpert_E) = TokenPermutation.Plan(routing.Experts_Tk, numExperts);
        saved.Keep(PlaceOfRow, placeOfRow_R);
        saved.Keep(RowOfPlace, rowOfPlace_Tk);
        var rows_RH = TokenPermutation.Copy(x_TH, placeOfRow_R, rowOfPlace_Tk.shape[1]);
        var weights_R = routing.Weights_Tk.reshape(-1).index_select(0, placeOfRow_R);
        return new DispatchedTokens(rows_RH.MoveToOuterDisposeScope(), weights_R.MoveToOuterDisposeScope(), rowsPerExpert_E.cpu().data<long>().ToArray());
    }

    /// <summary>Sums the experts' results of each token.</summary>
    /// <returns>[T, H].</returns>
    public Tensor Combine(Tensor rows_RH, Saved saved) => TokenPermutation.Sum(rows_RH, saved.Peek(RowOfPlace));

    /// <summary>Gradient of <see cref="Combine"/>.</summary>
    /// <returns>[R, H].</returns>
    public Tensor CombineBackward(Tensor gradOutput_TH, Saved saved) =>
        TokenPermutation.Copy(gradOutput_TH, saved.Peek(PlaceOfRow), saved.Peek(RowOfPlace).shape[1]);

    /// <summary>Gradient of <see cref="Dispatch"/>; frees what is kept.</summary>
    /// <returns>[T, H], and [T, k] for the router.</returns>
    public (Tensor GradX_TH, Tensor GradWeights_Tk) DispatchBackward(Tensor gradRows_RH, Tensor gradWeights_R, Saved saved)
    {
        using var scope = NewDisposeScope();
        var rowOfPlace_Tk = saved.Take(RowOfPlace);
        saved.Release(PlaceOfRow);
        var gradWeights_Tk = gradWeights_R.index_select(0, rowOfPlace_Tk.view(-1)).view(rowOfPlace_Tk.shape);
        return (TokenPermutation.Sum(gradRows_RH, rowOfPlace_Tk).MoveToOuterDisposeScope(), gradWeights_Tk.MoveToOuterDisposeScope());
    }
}
