using Megatron.Compute.Native;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Native;

/// <summary>The file of measured algorithms, and which shapes share one.</summary>
public sealed class MeasuredProductsTests
{
    private static readonly ProductShape Forward = new()
    {
        M = 2560, N = 8192, K = 9728, TransposeA = true, TransposeB = false, TypeA = CublasLt.TypeBf16, TypeB = CublasLt.TypeBf16, TypeD = CublasLt.TypeBf16, Alignment = 128,
    };

    [Fact]
    public void MeasuredProducts_AddedThenLoaded_FindsTheSameBytes()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("new", "products.txt");
        Assert.True(ProductAlgorithm.TryParse(Hex(1), out var first));
        Assert.True(ProductAlgorithm.TryParse(Hex(200), out var second));
        var products = MeasuredProducts.Load(path);
        Assert.Null(products.Find(Forward));
        products.Add(Forward, first);
        products.Add(Forward with { GapB = 64 }, second);
        foreach (var found in (MeasuredProducts[])[products, MeasuredProducts.Load(path)])
        {
            Assert.Equal(Hex(1), found.Find(Forward)?.ToHex());
            Assert.Equal(Hex(200), found.Find(Forward with { GapB = 64 })?.ToHex());
            Assert.Null(found.Find(Forward with { Alignment = 16 }));
        }
    }

    [Fact]
    public void MeasuredProducts_LineCutShort_IsPassedOver()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("products.txt");
        File.WriteAllText(path, $"{Forward.ToKey()} {Hex(3)[..50]}\nnonsense\n\n{(Forward with { M = 1 }).ToKey()} {Hex(4)}\n");
        var products = MeasuredProducts.Load(path);
        Assert.Null(products.Find(Forward));
        Assert.Equal(Hex(4), products.Find(Forward with { M = 1 })?.ToHex());
    }

    [Theory, InlineData(8192, 8192), InlineData(8000, 8192), InlineData(7169, 7680), InlineData(4097, 4608), InlineData(1, 1), InlineData(16, 16), InlineData(17, 18)]
    public void Representative_NearTokenCounts_ShareOne(int tokens, int expected)
    {
        Assert.Equal(Forward with { N = expected }, (Forward with { N = tokens }).Representative());
        var weightGradient = Forward with { TypeD = CublasLt.TypeFp32, K = tokens };
        Assert.Equal(weightGradient with { K = expected }, weightGradient.Representative());
    }

    [Fact]
    public void AlignmentOf_Addresses_IsTheLeastCommonPowerOfTwo()
    {
        Assert.Equal(256, ProductShape.AlignmentOf(0x1000, 0x2000, 0));
        Assert.Equal(128, ProductShape.AlignmentOf(0x1000, 0x2080));
        Assert.Equal(2, ProductShape.AlignmentOf(0x1000, 0x2082));
    }

    private static string Hex(byte value) => Convert.ToHexStringLower([.. Enumerable.Repeat(value, ProductAlgorithm.SizeBytes)]);
}
