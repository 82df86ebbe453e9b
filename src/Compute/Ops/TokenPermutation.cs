using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>The order of tokens sorted by expert: which row each place of [T, k], read row by row, has, and the other way round.</summary>
/// <param name="PlaceOfRow_R">[R] int64.</param>
/// <param name="RowOfPlace_Tk">[T, k] int64.</param>
public readonly record struct TokenOrder(Tensor PlaceOfRow_R, Tensor RowOfPlace_Tk);

/// <summary>
/// Sorting of tokens by expert, in plain libtorch operations, and on a GPU in own kernels (<c>Kernels/permutation.cu</c>). A token that goes to k
/// experts becomes k rows; rows of one expert lie together, in the order of their tokens. Gathers only, so every order of summation is fixed.
/// </summary>
/// <remarks>Shape letters: T tokens, k experts of a token, R = T·k rows, E experts, H hidden.</remarks>
public static class TokenPermutation
{
    /// <param name="expertIndex_Tk">[T, k] int64: the experts of each token, all different.</param>
    /// <param name="numExperts">E.</param>
    /// <returns>The order, and [E] int64 rows of each expert.</returns>
    public static (TokenOrder Order, Tensor RowsPerExpert_E) Plan(Tensor expertIndex_Tk, int numExperts)
    {
        if (TokenPermutationKernel.Supports(expertIndex_Tk, numExperts)) return TokenPermutationKernel.Plan(expertIndex_Tk, numExperts);
        using var scope = NewDisposeScope();
        var flat_R = expertIndex_Tk.reshape(-1);
        var placeOfRow_R = flat_R.sort(dim: 0, descending: false, stable: true).Indices;
        var rowOfPlace_R = empty_like(placeOfRow_R).scatter_(0, placeOfRow_R, arange(flat_R.shape[0], int64, flat_R.device));
        var rowsPerExpert_E = zeros([numExperts], int64, flat_R.device).scatter_add_(0, flat_R, ones_like(flat_R));
        var order = new TokenOrder(placeOfRow_R.MoveToOuterDisposeScope(), rowOfPlace_R.view(expertIndex_Tk.shape).MoveToOuterDisposeScope());
        return (order, rowsPerExpert_E.MoveToOuterDisposeScope());
    }

    /// <summary>Copies each token to its rows; the gradient of <see cref="Sum"/> too.</summary>
    /// <returns>[R, H].</returns>
    public static Tensor Copy(Tensor x_TH, TokenOrder order)
    {
        if (TokenPermutationKernel.Supports(x_TH)) return TokenPermutationKernel.Copy(x_TH, order.RowOfPlace_Tk);
        using var token_R = order.PlaceOfRow_R.div(order.RowOfPlace_Tk.shape[1], RoundingMode.floor);
        return x_TH.index_select(0, token_R);
    }

    /// <summary>Sums the rows of each token; the gradient of <see cref="Copy"/> too.</summary>
    /// <returns>[T, H].</returns>
    public static Tensor Sum(Tensor rows_RH, Tensor rowOfPlace_Tk)
    {
        if (TokenPermutationKernel.Supports(rows_RH)) return TokenPermutationKernel.Sum(rows_RH, rowOfPlace_Tk);
        using var scope = NewDisposeScope();
        var rows_TkH = rows_RH.index_select(0, rowOfPlace_Tk.view(-1)).view([.. rowOfPlace_Tk.shape, rows_RH.shape[1]]);
        return rows_TkH.sum(dim: 1).MoveToOuterDisposeScope();
    }
}
