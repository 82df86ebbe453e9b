using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// One product for each expert over rows that lie together. On a GPU, for bf16, all experts in one launch (libtorch's <c>_grouped_mm</c>); elsewhere
/// one product after another.
/// </summary>
/// <remarks>Shape letters: R rows, E experts, K inputs, N outputs.</remarks>
public static class GroupedProduct
{
    /// <summary>Row r of expert e gives left[r] · weights[e].</summary>
    /// <param name="left_RK">Rows sorted by expert.</param>
    /// <param name="weights_EKN">A view in any order of its last two dimensions.</param>
    /// <param name="rowsPerExpert">[E], sums to R.</param>
    /// <returns>[R, N].</returns>
    public static Tensor Rows(Tensor left_RK, Tensor weights_EKN, long[] rowsPerExpert)
    {
        if (IsFused(left_RK) && left_RK.shape[0] > 0)
        {
            using var ends = Ends(rowsPerExpert, left_RK.device);
            return Dispatcher.Call(
                "aten::_grouped_mm", "", 1, left_RK, weights_EKN, StableValue.Optional(ends), StableValue.Optional((Tensor?)null), StableValue.Optional((long?)null))[0];
        }
        var result_RN = empty([left_RK.shape[0], weights_EKN.shape[2]], left_RK.dtype, left_RK.device);
        ForEach(rowsPerExpert, (expert, start, count) =>
            result_RN.narrow(0, start, count).addmm_(left_RK.narrow(0, start, count), weights_EKN.select(0, expert), beta: 0, alpha: 1));
        return result_RN;
    }

    /// <summary>
    /// MainGrad[e] += gradOutputᵀ · input over the rows of expert e. On a GPU the products are rounded to bf16 once before they are added in fp32.
    /// </summary>
    /// <param name="parameter">[E, N, K].</param>
    /// <param name="gradOutput_RN">Rows sorted by expert.</param>
    /// <param name="input_RK">Likewise.</param>
    public static void AccumulateWeights(Parameter parameter, Tensor gradOutput_RN, Tensor input_RK, long[] rowsPerExpert)
    {
        using var scope = NewDisposeScope();
        if (IsFused(input_RK) && input_RK.shape[0] > 0)
        {
            var products_ENK = Dispatcher.Call(
                "aten::_grouped_mm", "", 1, gradOutput_RN.t(), input_RK, StableValue.Optional(Ends(rowsPerExpert, input_RK.device)),
                StableValue.Optional((Tensor?)null), StableValue.Optional((long?)null))[0];
            WeightGradient.Add(parameter, products_ENK);
            return;
        }
        ForEach(rowsPerExpert, (expert, start, count) =>
            WeightGradient.Accumulate(parameter.MainGrad.select(0, expert), gradOutput_RN.narrow(0, start, count), input_RK.narrow(0, start, count)));
    }

    private static bool IsFused(Tensor x) => x.device_type == DeviceType.CUDA && x.dtype == ScalarType.BFloat16;

    /// <summary>[E] int32 end of each expert's rows.</summary>
    private static Tensor Ends(long[] rowsPerExpert, Device device)
    {
        var ends = new int[rowsPerExpert.Length];
        var end = 0L;
        for (var i = 0; i < ends.Length; i++) ends[i] = checked((int)(end += rowsPerExpert[i]));
        return tensor(ends, int32, device);
    }

    private static void ForEach(long[] rowsPerExpert, Action<int, long, long> run)
    {
        var start = 0L;
        for (var expert = 0; expert < rowsPerExpert.Length; expert++)
        {
            using var scope = NewDisposeScope();
            if (rowsPerExpert[expert] > 0) run(expert, start, rowsPerExpert[expert]);
            start += rowsPerExpert[expert];
        }
    }
}
