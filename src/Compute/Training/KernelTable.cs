using System.Globalization;
using System.Text;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>One CUDA kernel of ours, compared and timed.</summary>
/// <param name="Kernel">What it computes.</param>
/// <param name="NumShapes">Random shapes compared in each precision.</param>
/// <param name="ErrorFp32">Largest relative L2 difference from its twin in libtorch operations over all shapes and results, fp32.</param>
/// <param name="ErrorBf16">The same for bf16 against the twin in fp32.</param>
/// <param name="Bytes">Each input read once and each output written once, at the timed size; 0 when it is not timed.</param>
/// <param name="Milliseconds">Of all its launches, on the GPU.</param>
/// <param name="TargetShare">Share of <see cref="KernelTable.CopyBandwidth"/> that it is to reach.</param>
public sealed record KernelRow(string Kernel, int NumShapes, double ErrorFp32, double ErrorBf16, long Bytes, double Milliseconds, double TargetShare)
{
    /// <summary>Bytes a second over <see cref="KernelTable.CopyBandwidth"/>.</summary>
    public double Share => Bytes == 0 ? 0 : Bytes / Milliseconds * 1e3 / KernelTable.CopyBandwidth;

    /// <summary>True when both errors and the bandwidth are within the bars.</summary>
    public bool IsGood => HasGoodErrors && (Bytes == 0 || Share >= TargetShare);

    /// <summary>True when both errors are within the bars.</summary>
    public bool HasGoodErrors => ErrorFp32 <= KernelTable.MaxErrorFp32 && ErrorBf16 <= KernelTable.MaxErrorBf16;
}

/// <summary>
/// Every CUDA kernel against its twin in plain libtorch operations on random shapes, odd ones included, and its bandwidth at a size of at least
/// 256 MiB (<c>megatron benchmark --kernels</c>).
/// </summary>
public static class KernelTable
{
    /// <summary>Bars of relative L2 differences.</summary>
    public const double MaxErrorFp32 = 1e-5, MaxErrorBf16 = 1e-2;

    /// <summary>Bytes a second of a copy on an H200, read and written: what bandwidths are shares of.</summary>
    public const double CopyBandwidth = 4.3e12;

    private const int NumShapes = 12, TimedRuns = 5;

    /// <summary>Runs all comparisons and timings on <paramref name="device"/>, a GPU.</summary>
    /// <param name="seed">Of shapes and values.</param>
    public static IReadOnlyList<KernelRow> Run(Device device, int seed) => [.. KernelCases.All.Select(kernel => Measure(kernel, device, seed))];

    /// <summary>A Markdown table.</summary>
    public static string Markdown(IReadOnlyList<KernelRow> rows)
    {
        var text = new StringBuilder("| kernel | shapes | fp32 error | bf16 error | MiB | ms | TB/s | of 4.3 TB/s | bar |\n|---|---|---|---|---|---|---|---|---|\n");
        foreach (var row in rows)
        {
            text.Append(CultureInfo.InvariantCulture, $"| {row.Kernel} | {row.NumShapes} | {row.ErrorFp32:0.0e-0} | {row.ErrorBf16:0.0e-0} | ");
            text.Append(row.Bytes == 0
                ? "– | – | – | – | "
                : string.Create(CultureInfo.InvariantCulture, $"{row.Bytes >> 20} | {row.Milliseconds:F3} | {row.Bytes / row.Milliseconds / 1e9:F2} | {100 * row.Share:F0} % | "));
            text.Append(row.Bytes == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $"{100 * row.TargetShare:F0} %")).Append(row.IsGood ? " |\n" : " **missed** |\n");
        }
        return text.ToString();
    }

    private static KernelRow Measure(KernelCase kernel, Device device, int seed)
    {
        var errors = new double[2];
        ScalarType[] dtypes = [ScalarType.Float32, ScalarType.BFloat16];
        for (var i = 0; i < dtypes.Length; i++)
        {
            var draw = new KernelDraw(new Random(seed), device, dtypes[i], isLarge: false);
            for (var shape = 0; shape < NumShapes; shape++) errors[i] = Math.Max(errors[i], Error(kernel.Make(draw)));
        }
        var (bytes, milliseconds) = kernel.TargetShare == 0 ? (0, 0) : Time(kernel, new KernelDraw(new Random(seed), device, ScalarType.BFloat16, isLarge: true));
        return new KernelRow(kernel.Name, NumShapes, errors[0], errors[1], bytes, milliseconds, kernel.TargetShare);
    }

    private static double Error(KernelWork work)
    {
        using var arguments = work;
        using var scope = NewDisposeScope();
        var expected = work.Reference(); // first: some kernels work in place
        var actual = work.Run();
        var worst = 0.0;
        for (var i = 0; i < actual.Length; i++)
        {
            var wide = actual[i].cpu().to_type(ScalarType.Float64);
            var reference = expected[i].cpu().to_type(ScalarType.Float64);
            var difference = wide.sub(reference).norm().item<double>() / Math.Max(reference.norm().item<double>(), 1e-20);
            worst = Math.Max(worst, double.IsNaN(difference) ? double.PositiveInfinity : difference);
        }
        return worst;
    }

    /// <summary>Median of the kernels' own time over some runs, after one that compiles and allocates.</summary>
    private static (long Bytes, double Milliseconds) Time(KernelCase kernel, KernelDraw draw)
    {
        using var work = kernel.Make(draw);
        RunOnce(work);
        var times = Enumerable.Range(0, TimedRuns).Select(_ => CudaTrace.Record(() => RunOnce(work)).Sum(activity => activity.DurationNs) / 1e6).Order().ToArray();
        return (work.Bytes, times[TimedRuns / 2]);
    }

    private static void RunOnce(KernelWork work)
    {
        using var scope = NewDisposeScope();
        work.Run();
    }
}
