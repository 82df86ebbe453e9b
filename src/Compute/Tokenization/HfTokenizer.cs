using System.Globalization;
using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Byte-level BPE tokenizer of a Hugging Face folder, id for id the same as the Rust library: added tokens, normalization,
/// pre-tokenization,
/// merges. Not here: SentencePiece, Unigram, WordPiece; chat templates.
/// </summary>
public sealed class HfTokenizer : ITokenizer
{
    /// <summary>Ids above this are taken for a damaged file; no model has so many rows.</summary>
    private const int MaxId = 1 << 24;

    private readonly TextNormalizer _normalizer;
    private readonly PreTokenizer _preTokenizer;
    private readonly BytePairModel _model;
    private readonly Dictionary<string, int> _ids;
    private readonly string?[] _tokens;
    private readonly byte[] _bytes;
    private readonly int[] _byteOffsets;
    private readonly AddedTokenMatcher _rawTokens;
    private readonly AddedTokenMatcher _normalizedTokens;
    private readonly HashSet<int> _specialIds;

    private HfTokenizer(TokenizerJson json, TokenizerConfig config)
    {
        _ids = new Dictionary<string, int>(json.Vocabulary, StringComparer.Ordinal);
        var added = AllAddedTokens(json, config);
        _normalizer = new TextNormalizer(json.Normalization);
        _preTokenizer = json.PreTokenizer;
        _model = new BytePairModel(json.Vocabulary, json.Merges, json.IgnoreMerges);
        if (json.UnknownToken is not null && !_model.CoversUtf8)
            throw TokenizerJson.Unsupported("model.unk_token", json.UnknownToken, "it is only when every byte has a token of its own");
        _rawTokens = new AddedTokenMatcher(added.Where(token => !token.IsNormalized), token => token.Content);
        _normalizedTokens = new AddedTokenMatcher(added.Where(token => token.IsNormalized), token => _normalizer.Apply(token.Content));
        _specialIds = [.. added.Where(token => token.IsSpecial).Select(token => token.Id)];

        VocabSize = _ids.Count == 0 ? 0 : _ids.Values.Max() + 1;
        _tokens = new string?[VocabSize];
        foreach (var (token, id) in _ids)
            _tokens[id] = token;
        (_bytes, _byteOffsets) = BytesOf(_tokens);

        BosId = Named("bos_token", config.Bos) ?? (json.FrontIds.Count > 0 ? json.FrontIds[0] : null);
        EosId = Named("eos_token", config.Eos);
        PadId = Named("pad_token", config.Pad) ?? EosId;
        _specialIds.UnionWith(new[] { BosId, EosId, PadId }.OfType<int>());

        // The Llama class builds its post-processor from add_bos_token (default true); the others keep that of tokenizer.json.
        AddsBos = BosId is int bos
            && (config.TokenizerClass.StartsWith("LlamaTokenizer", StringComparison.Ordinal)
                ? config.AddsBos ?? true
                : json.FrontIds.Contains(bos));
    }

    /// <inheritdoc/>
    public int VocabSize { get; }

    /// <inheritdoc/>
    public int? BosId { get; }

    /// <inheritdoc/>
    public int? EosId { get; }

    /// <inheritdoc/>
    public int? PadId { get; }

    /// <inheritdoc/>
    public bool AddsBos { get; }

    /// <inheritdoc/>
    public IReadOnlySet<int> SpecialIds => _specialIds;

    /// <summary>
    /// Reads tokenizer.json (or tokenizer.json.gz), tokenizer_config.json and special_tokens_map.json; the last two may be absent.
    /// Throws <see cref="ConfigException"/>: TOK001 no tokenizer.json, TOK002 unreadable, TOK003 merges inconsistent, TOK004 two tokens
    /// with one id,
    /// TOK005 special token outside the vocabulary, TOK007 an unsupported part, TOK008 no Unicode data in this process.
    /// </summary>
    public static HfTokenizer Load(string folder)
    {
        TextNormalizer.CheckUnicodeData();
        var json = TokenizerFiles.Read(folder, "tokenizer.json", TokenizerJson.Parse);
        if (json is not null)
            return new HfTokenizer(json, TokenizerConfig.Read(folder));
        var hint = File.Exists(Path.Combine(folder, "tokenizer.model"))
            ? "it has a SentencePiece tokenizer.model, which is not supported"
            : "a model folder needs one beside its config.json";
        throw new ConfigException("TOK001",
            $"No tokenizer.json (or tokenizer.json.gz) in {folder}: {hint}; copy tokenizer.json from the model's source.");
    }

    /// <inheritdoc/>
    public int[] Encode(string text)
    {
        var wellFormed = WellFormed(text);
        var workspace = _model.Rent();
        workspace.Ids.Clear();
        foreach (var segment in _rawTokens.Split(wellFormed))
        {
            if (segment.Id >= 0)
                workspace.Ids.Add(segment.Id);
            else
                EncodeNormalized(_normalizer.Apply(Slice(wellFormed, segment)), workspace);
        }

        var ids = workspace.Ids.ToArray();
        _model.Return(workspace);
        return ids;
    }

    /// <inheritdoc/>
    public string Decode(ReadOnlySpan<int> ids, bool skipSpecialTokens)
    {
        var bytes = new List<byte>(ids.Length * 4);
        foreach (var id in ids)
        {
            if (!skipSpecialTokens || !_specialIds.Contains(id))
                bytes.AddRange(TokenBytes(id));
        }

        return Encoding.UTF8.GetString(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(bytes));
    }

    /// <inheritdoc/>
    public ReadOnlySpan<byte> TokenBytes(int id) =>
        (uint)id < (uint)VocabSize ? _bytes.AsSpan(_byteOffsets[id].._byteOffsets[id + 1]) : [];

    /// <inheritdoc/>
    public int? TokenToId(string token) => _ids.TryGetValue(token, out var id) ? id : null;

    /// <inheritdoc/>
    public string? IdToToken(int id) => (uint)id < (uint)VocabSize ? _tokens[id] : null;

    private void EncodeNormalized(string text, BytePairModel.Workspace workspace)
    {
        foreach (var segment in _normalizedTokens.Split(text))
        {
            if (segment.Id >= 0)
                workspace.Ids.Add(segment.Id);
            else
                _preTokenizer.Split(Slice(text, segment), (Model: _model, Workspace: workspace),
                    static (piece, state) => state.Model.Encode(piece, state.Workspace));
        }
    }

    private static string Slice(string text, TextSegment segment) =>
        segment.Length == text.Length ? text : text.Substring(segment.Start, segment.Length);

    /// <summary>The text with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD.</summary>
    private static string WellFormed(string text)
    {
        if (!text.AsSpan().ContainsAnyInRange('\uD800', '\uDFFF'))
            return text;
        var clean = new StringBuilder(text.Length);
        foreach (var rune in text.EnumerateRunes())
            clean.Append(rune);
        return clean.ToString();
    }

    /// <summary>
    /// Added tokens of both files and the named special tokens, checked against the vocabulary; their ids go into the table.
    /// </summary>
    private List<AddedToken> AllAddedTokens(TokenizerJson json, TokenizerConfig config)
    {
        var tokens = new List<AddedToken>();
        var contents = new HashSet<string>(StringComparer.Ordinal);
        var owners = json.Vocabulary.ToDictionary(entry => entry.Value, entry => entry.Key);
        foreach (var token in json.AddedTokens.Concat(config.AddedTokens))
        {
            if (token.Id is < 0 or > MaxId)
                throw new ConfigException("TOK005",
                    Invariant($"Added token '{token.Content}' has id {token.Id}, which no vocabulary can hold; correct tokenizer.json."));
            if (_ids.TryGetValue(token.Content, out var known) && known != token.Id)
                throw new ConfigException("TOK004",
                    Invariant($"Token '{token.Content}' has id {known} and id {token.Id} in the tokenizer files; keep one."));
            if (owners.TryGetValue(token.Id, out var owner) && owner != token.Content)
                throw new ConfigException("TOK004",
                    Invariant($"Tokens '{owner}' and '{token.Content}' of the tokenizer files have the same id {token.Id}; ids must be unique."));
            owners[token.Id] = token.Content;
            _ids[token.Content] = token.Id;
            if (contents.Add(token.Content))
                tokens.Add(token);
        }

        // BOS, EOS and padding are looked for in texts even when they are only ordinary entries of the vocabulary.
        foreach (var named in new[] { config.Bos, config.Eos, config.Pad })
        {
            if (named is not null && _ids.TryGetValue(named, out var id) && contents.Add(named))
                tokens.Add(new AddedToken(id, named, true, false, false, false, false));
        }

        if (owners.Count > 0 && owners.Keys.Max() > MaxId || owners.Keys.Any(id => id < 0))
            throw new ConfigException("TOK005",
                "The vocabulary of tokenizer.json has an id that no vocabulary can hold; the file is damaged.");
        foreach (var id in json.FrontIds.Where(id => !owners.ContainsKey(id)))
            throw new ConfigException("TOK005",
                Invariant($"The post_processor of tokenizer.json adds id {id}, which the vocabulary does not have; correct the file."));
        return tokens;
    }

    private int? Named(string setting, string? token)
    {
        if (token is null)
            return null;
        return TokenToId(token)
            ?? throw new ConfigException("TOK005",
                $"{setting} = '{token}' of tokenizer_config.json is not in the vocabulary; name a token that tokenizer.json has.");
    }

    /// <summary>
    /// Bytes of all tokens in one array. A token with a letter outside the byte alphabet, such as an added one, stands for its UTF-8.
    /// </summary>
    private static (byte[] Bytes, int[] Offsets) BytesOf(string?[] tokens)
    {
        var bytes = new List<byte>(tokens.Length * 8);
        var offsets = new int[tokens.Length + 1];
        for (var id = 0; id < tokens.Length; id++)
        {
            offsets[id] = bytes.Count;
            var token = tokens[id] ?? "";
            if (token.All(letter => ByteAlphabet.ToByte(letter) >= 0))
                bytes.AddRange(token.Select(letter => (byte)ByteAlphabet.ToByte(letter)));
            else
                bytes.AddRange(Encoding.UTF8.GetBytes(token));
        }

        offsets[^1] = bytes.Count;
        return ([.. bytes], offsets);
    }

    private static string Invariant(FormattableString message) => message.ToString(CultureInfo.InvariantCulture);
}
