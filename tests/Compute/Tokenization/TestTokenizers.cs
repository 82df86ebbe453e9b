using System.Collections.Concurrent;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>The tokenizers of tests/assets/tokenizers, each loaded once in a test run.</summary>
internal static class TestTokenizers
{
    private static readonly ConcurrentDictionary<string, Lazy<HfTokenizer>> Loaded = [];

    public static HfTokenizer Get(string name) =>
        Loaded.GetOrAdd(name, _ => new Lazy<HfTokenizer>(() => HfTokenizer.Load(Repository.Asset("tokenizers", name)))).Value;
}
